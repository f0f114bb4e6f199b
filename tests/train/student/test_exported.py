"""An exported student in someone's hands: timm, transformers, load_student and student.py."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import phistill
from phistill.cache import Cache, TeacherInfo
from phistill.errors import PhistillError, UsageError
from phistill.pipeline.decode.views import Rendering, View, render
from phistill.stats import fit_stats
from phistill.train import TrainConfig, export, load_run, load_student, train
from phistill.train.student import to_onnx

Config = Callable[..., TrainConfig]
TEACHER = TeacherInfo(name="t.b", grid=(2, 3), widths={"patches": 8, "summary": 6})
VIT = {"depth": 1, "embed_dim": 24, "num_heads": 2}

STUDENTS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "ViT": ("vit_tiny_patch16_224", VIT, 32, 0),
    "ViT at another size": ("vit_tiny_patch16_224", VIT, 48, 32),
    "DINOv2, 14 px": ("vit_small_patch14_dinov2", VIT, 28, 0),
    "DINOv2, left-over pixels": ("vit_small_patch14_dinov2", VIT, 48, 0),
    "DINOv2 with registers at another size": ("vit_small_patch14_reg4_dinov2", VIT, 48, 42),
    "DINOv3": ("vit_small_patch16_dinov3", VIT, 48, 32),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 64, 0),
    "ResNet": ("resnet10t", {}, 64, 96),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 12},
        56,
        0,
    ),
}


@pytest.fixture
def exported(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> Callable[..., Path]:
    def make(student: str, options: dict[str, Any], stored: int, shown: int, **more: Any) -> Path:
        cache = make_cache(
            num_rows=16, teachers=[TEACHER], pixel_size=stored, view=more.pop("view", "resize")
        )
        fit_stats(cache)
        config = make_config(
            student=student, student_options=options, image_size=shown, num_steps=1, **more
        )
        train(cache, tmp_path / "run", config)
        return export(tmp_path / "run", tmp_path / "student")

    return make


def drawing(seed: int, width: int = 70, height: int = 41, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def transform_of(net: Any) -> Any:
    """What timm makes of the folder's config.json."""
    data: Any = importlib.import_module("timm.data")
    return data.create_transform(**data.resolve_model_data_config(net))


def standalone(folder: Path) -> Any:
    """The module student.py of an export."""
    spec = importlib.util.spec_from_file_location("student_of_a_test", folder / "student.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:patches of 14 pixels leave 6 of 48:UserWarning")
@pytest.mark.parametrize("case", STUDENTS)
def test_timm_and_the_file_without_phistill_see_what_the_student_saw(
    case: str, exported: Callable[..., Path]
) -> None:
    name, options, stored, shown = STUDENTS[case]
    folder = exported(name, options, stored, shown)
    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = transform_of(net)
    student, alone = load_student(folder), standalone(folder)
    pixels = np.asarray(drawing(0).resize((stored, stored)))
    images = torch.rand(2, 3, student.image_size, student.image_size)
    with torch.inference_mode():
        found = net.forward_features(transform(Image.fromarray(pixels))[None])
        told = student.features(torch.from_numpy(pixels.copy())[None])[0]
        if found.ndim == 3:
            found = found[:, student.student.backbone.num_prefix :].reshape(told.shape)
        elif found.shape != told.shape:
            found = found.permute(0, 2, 3, 1)
        torch.testing.assert_close(found, told, rtol=0, atol=1e-5)
        if not shown:  # made of the whole picture at once, not of its stored pixels
            whole = transform(drawing(1))
            torch.testing.assert_close(whole * 0.5 + 0.5, student.preprocess(drawing(1)) / 255)
        for given in (images, alone.preprocess(drawing(2, mode="RGBA"))[None]):
            ours, theirs = student(given)["t.b"], alone.student(given)["t.b"]
            assert torch.equal(ours.patches, theirs["patches"])
            assert torch.equal(ours.summary, theirs["summary"])
        picture = drawing(2, mode="RGBA")
        assert torch.equal(student.preprocess(picture) / 255, alone.preprocess(picture))


@pytest.mark.parametrize("kind", ["resize", "center-crop"])
def test_every_kind_of_view_is_shown_again(kind: str, exported: Callable[..., Path]) -> None:
    folder = exported("vit_tiny_patch16_224", VIT, 32, 0, view=kind)
    student, alone = load_student(folder), standalone(folder)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = transform_of(net)
    for width, height in ((70, 41), (41, 70), (33, 33), (20, 31)):
        picture = drawing(3, width, height)
        place = View(kind).place(picture.size, seed=0, image_id="a", number=0)
        stored = render(picture, place, Rendering((32, 32), "bicubic"))
        wanted = torch.from_numpy(stored.copy()).permute(2, 0, 1)
        assert torch.equal(student.preprocess(picture), wanted)
        assert torch.equal(alone.preprocess(picture), wanted / 255)
        torch.testing.assert_close(transform(picture), (wanted / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("case", ["ViT", "ConvNeXt", "DINOv2 with registers at another size"])
def test_transformers_load_the_student_as_timm_does(
    case: str, exported: Callable[..., Path]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers`")
    folder = exported(*STUDENTS[case])
    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = transform_of(net)
    model = transformers.AutoModel.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(drawing(0), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        assert torch.equal(pixels[0], transform(drawing(0)))
        assert torch.equal(model(pixels).last_hidden_state, net.forward_features(pixels))


def test_a_student_takes_bytes_and_other_sizes_and_can_be_trained_on(
    exported: Callable[..., Path],
) -> None:
    folder = exported("vit_tiny_patch16_224", VIT, 32, 0)
    student = phistill.load_student(folder)
    bytes_ = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    answer = student(bytes_)["t.b"]
    assert torch.equal(answer.patches, student(bytes_ / 255)["t.b"].patches)
    assert answer.patches.shape == (2, 6, 8)
    loss = sum(value.square().mean() for value in answer)
    loss.backward()
    with_gradient = [p for p in student.parameters() if p.grad is not None]
    assert len(with_gradient) > len(list(student.parameters())) / 2
    with pytest.raises(UsageError, match="does not take 20 x 32 pixels"):
        student(torch.rand(1, 3, 20, 32))
    with pytest.raises(UsageError, match=r"wanted \(b, 3, H, W\)"):
        student(torch.rand(1, 32, 32, 3))
    with pytest.raises(UsageError, match="no stated range"):
        student.preprocess(Image.new("I;16", (4, 4)))


def test_summaries_learnt_by_direction_have_the_length_of_the_teachers(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    student = load_student(exported("vit_tiny_patch16_224", VIT, 32, 0))
    norm = load_run(tmp_path / "run").facts["norms"]["t.b/summary"]
    path = load_run(tmp_path / "run").facts["caches"][0]["path"]
    cache = phistill.open(path)
    stored = cache.reader("t.b", "summary").read(cache.rows(["t.b"], "train")).astype(np.float64)
    assert norm == pytest.approx(np.sqrt((stored**2).sum(1).mean()), rel=1e-6)
    lengths = student(torch.rand(3, 3, 32, 32))["t.b"].summary.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((3,), norm))


def test_the_model_card_names_teachers_licences_data_and_figures(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = exported("vit_tiny_patch16_224", VIT, 32, 0)
    text = (folder / "README.md").read_text("utf-8")
    facts = load_run(tmp_path / "run").facts
    for wanted in ("| t.b |", "unknown: check", facts["images_digest"], "| normalizer | phi-s"):
        assert wanted in text
    assert "Not measured" in text
    assert str(tmp_path) not in "".join(
        path.read_text("utf-8") for path in folder.glob("*.[jpm][syd]*") if path.suffix != ".bin"
    )
    line = {"teacher": "t.b", "kind": "patches", "value": 0.5, "low": 0.4, "high": 0.6}
    export(tmp_path / "run", tmp_path / "other", metrics=[line | {"num_images": 90}])
    assert "| t.b | patches | 0.500 | 0.400 to 0.600 | 90 |" in (
        tmp_path / "other" / "README.md"
    ).read_text("utf-8")


@pytest.mark.parametrize("case", ["ViT", "DINOv3", "ConvNeXt", "DINOv2, 14 px"])
def test_onnxruntime_gives_the_features_of_torch_at_any_batch_and_size(
    case: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx`")
    exported(*STUDENTS[case])
    folder = export(tmp_path / "run", tmp_path / "with-onnx", onnx=True)
    student = load_student(folder)
    session = onnxruntime.InferenceSession(folder / "student.onnx")
    side = student.image_size
    for batch, height, width in ((1, side, side), (3, side, side), (3, 2 * side, 3 * side)):
        images = torch.rand(batch, 3, height, width)
        with torch.inference_mode():
            answer = student(images)["t.b"]
        found = session.run(["t.b/patches", "t.b/summary"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), answer.patches, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(found[1]), answer.summary, rtol=0, atol=1e-4)


def test_a_graph_that_gives_other_numbers_is_not_kept(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(*STUDENTS["ViT"])
    monkeypatch.setattr(to_onnx, "_cubic", lambda given, wanted, like: torch.ones(wanted, given))
    with pytest.raises(PhistillError, match="onnxruntime gives other features"):
        export(tmp_path / "run", tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", [(3, 5), (7, 7), (14, 9), (4, 4)])
def test_position_embeddings_are_resampled_as_timm_does_it(new: tuple[int, int]) -> None:
    embedding = torch.randn(1, 2 + 49, 6)
    layers: Any = importlib.import_module("timm.layers")
    theirs = layers.resample_abs_pos_embed(embedding, new, (7, 7), num_prefix_tokens=2)
    ours = to_onnx.resampled(embedding, new, (7, 7), num_prefix_tokens=2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
