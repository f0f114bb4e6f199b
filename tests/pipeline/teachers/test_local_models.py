"""Models from a folder: what was saved is what is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from phistill.errors import TeacherError, UsageError
from phistill.pipeline.teachers.spec import TeacherSpec

IMAGES = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_timm_folder_gives_the_saved_models_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_features": 192,
        "num_classes": 0,
        "model_args": {"img_size": 32},
        "pretrained_cfg": {
            "input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
            "interpolation": "bilinear", "license": "mit", "num_classes": 0,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    spec = TeacherSpec.parse(f"timm:local-dir:{tmp_path}")
    assert spec.name == tmp_path.name
    teacher: Any = spec.build()
    given = teacher.preprocessing()
    assert (given.size, given.mean, given.interpolation) == ((32, 32), (0.1, 0.2, 0.3), "bilinear")
    assert teacher.licence == "mit"
    with torch.inference_mode():
        expected = net.forward_features(IMAGES)[:, 1:]
        found = teacher.features(IMAGES).patches.flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_open_clip_folder_gives_the_saved_models_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vision: Any = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    text: Any = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    net: Any = open_clip.CLIP(
        16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
    ).eval()
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": preprocess})
    )
    save_file(net.state_dict(), tmp_path / "open_clip_model.safetensors")
    teacher = TeacherSpec.parse(f"open_clip:local-dir:{tmp_path}").build()
    assert teacher.preprocessing().mean == (0.1, 0.2, 0.3)
    with torch.inference_mode():
        expected = net.encode_image(IMAGES)
        found = teacher.features(IMAGES)
    assert found.summary is not None
    torch.testing.assert_close(found.summary, expected, rtol=0, atol=0)
    assert found.patches.shape == (1, 4, 4, 32)


def test_weights_saved_by_data_parallel_training_load(tmp_path: Path) -> None:
    net: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.pt")
    text = f"timm:vit_tiny_patch16_224?size=32&weights={tmp_path / 'last.pt'}"
    teacher = TeacherSpec.parse(text).build()
    with torch.inference_mode():
        expected = net.eval().forward_features(IMAGES)[:, 1:]
        found = teacher.features(IMAGES).patches.flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("executed").touch, ())


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(TeacherError, match="cannot be loaded as weights alone"):
        TeacherSpec.parse("timm:vit_tiny_patch16_224?size=32&weights=evil.pt").build()
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    net: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    state = net.state_dict()
    del state["norm.weight"]
    save_file(state, tmp_path / "w.safetensors")
    path = tmp_path / "w.safetensors"
    with pytest.raises(TeacherError, match=r"lacks norm\.weight"):
        TeacherSpec.parse(f"timm:vit_tiny_patch16_224?size=32&weights={path}").build()
    with pytest.raises(UsageError, match="does not exist"):
        TeacherSpec.parse("timm:vit_tiny_patch16_224?weights=none.pt").build()
