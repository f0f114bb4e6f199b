"""Weights files as training programs and hubs write them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from phistill.errors import TeacherError, UsageError
from phistill.pipeline.teachers.check import check_teacher
from phistill.pipeline.teachers.models.weights import weights_sha256
from phistill.pipeline.teachers.spec import TeacherSpec


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=0).state_dict()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value.clone() for name, value in state.items()}


def built(path: Path, options: str = "") -> Any:
    return TeacherSpec.parse(f"timm:test_vit?weights={path}{options}").build()


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "backbone.", "teacher.", "student.", "encoder.", "_orig_mod.",
     "module.model.", "teacher.backbone."],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_a_prefix_is_taken_off(
    prefix: str, suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix != ".pth" else torch.save)(under(prefix, state), path)
    net = timm.create_model("test_vit", num_classes=0)
    net.load_state_dict(state)
    assert weights_sha256(built(path).model) == weights_sha256(net)


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As many names, with other values."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    # what a program writes, of the weights w and of others o, and the words about it
    "lightning": (
        lambda w, o: {"state_dict": under("model.backbone.", w), "hyper_parameters": {"lr": 1}},
        "(key=state_dict prefix=model.backbone.), left none",
    ),
    "dino": (
        lambda w, o: {
            "student": under("module.backbone.", o),
            "teacher": under("backbone.", w) | {"head.mlp.weight": torch.zeros(2, 2)},
            "args": argparse.Namespace(lr=1e-3),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []},
        },
        "(key=teacher prefix=backbone.), left head.mlp.weight",
    ),
    "states of an optimizer beside": (
        lambda w, o: {"exp_avg_sq": o, "grads": o, "net": w},
        "(key=net), left none.",
    ),
    "i-jepa": (
        lambda w, o: {"encoder": o, "predictor": o, "target_encoder": under("module.", w)},
        "as many are in key=encoder, key=predictor",
    ),
    "a decoder of the same names": (
        lambda w, o: under("decoder.", o) | under("encoder.", w),
        "as many are in prefix=decoder.",
    ),
    "dinov2, both in one": (
        lambda w, o: {"model": under("student.backbone.", o) | under("teacher.backbone.", w)},
        "as many are in key=model prefix=student.backbone.",
    ),
    "ibot": (
        lambda w, o: {"teacher": under("backbone.", w) | {"backbone.masked_embed": torch.zeros(1)}},
        "left masked_embed",
    ),
    "mae": (
        lambda w, o: {"model": w | {"mask_token": torch.zeros(1), "decoder.x": torch.zeros(1)}},
        "(key=model), left mask_token, decoder.x",
    ),
    "moco": (
        lambda w, o: {
            "state_dict": under("module.momentum_encoder.", o) | under("module.base_encoder.", w)
        },
        "(key=state_dict prefix=module.base_encoder.)",
    ),
    "timm with averages": (
        lambda w, o: {"state_dict": o, "state_dict_ema": w, "arch": "test_vit"},
        "(key=state_dict_ema), left none; as many are in key=state_dict.",
    ),
    "averages inside": (lambda w, o: {"model": o, "model_ema": {"module": w}}, "model_ema.module"),
    "averages beside": (lambda w, o: {"model": o, "ema_state_dict": w}, "(key=ema_state_dict)"),
    "averages of torch": (
        lambda w, o: {"n_averaged": torch.tensor(3), **under("module.", w)},
        "(prefix=module.), left n_averaged",
    ),
    "deep": (lambda w, o: {"app": {"model": {"net": under("a.b.", w)}}}, "key=app.model.net"),
    "compiled and parallel": (lambda w, o: under("_orig_mod.module.", w), "_orig_mod.module."),
    "a classifier": (
        lambda w, o: w | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)},
        "left head.weight, head.bias",
    ),
    "half": (lambda w, o: {n: v.half() for n, v in w.items()}, "left none; stored as float16"),
}


@pytest.mark.parametrize(("written", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_of_a_training_run_is_read(
    written: Any, words: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(written(state, other(state)), tmp_path / "checkpoint.pth")
    teacher = built(tmp_path / "checkpoint.pth")
    expected = {n: v.half().float() for n, v in state.items()} if "float16" in words else state
    for name, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert words in teacher.notes[0]


def test_files_of_an_index_are_one(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = list(state)
    files = {
        name: f"model-0000{1 + (at > 9)}-of-00002.safetensors" for at, name in enumerate(names)
    }
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    torch.testing.assert_close(built(index).model.state_dict(), state)
    with pytest.raises(TeacherError, match=r"one of 2 parts; name their index"):
        built(tmp_path / "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(UsageError, match="no index of weights files"):
        built(index)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (
            "w.pth",
            b"hello world, this is no file of weights",
            "is no file of torch.save, or is cut",
        ),
        ("w.pth", b"", "is no file of torch.save, or is cut"),
        ("w.safetensors", b"<html>404 not found</html>", "is no safetensors file"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("w.index.json", b"[]", "no index of weights files"),
        ("w.index.json", b'{"weight_map": {"a": "w.index.json"}}', "no index of weights files"),
    ],
)
def test_what_is_no_file_of_weights_is_said_in_one_line(
    name: str, content: bytes, what: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=what) as refused:
        built(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda value: (value * 10).to(torch.int8), "int8"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to("meta"), "no data"),
    ],
)
def test_weights_that_are_no_plain_floats_are_refused(
    change: Any, kind: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "blocks.0.attn.qkv.weight"
    torch.save(state | {name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"{name} is {kind}.*Save the model unquantized"):
        built(tmp_path / "w.pth")


def test_every_teacher_of_one_file_says_what_was_used(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "own.pth")
    first, second = built(tmp_path / "own.pth"), built(tmp_path / "own.pth", "&layer=-2")
    assert first.model is second.model
    assert first.notes == second.notes != ()


def test_a_key_without_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="give weights=FILE too"):
        TeacherSpec.parse("timm:test_vit?random=0&key=model").build()


def test_torch_hubs_own_dinov3_file_loads_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its names: storage_tokens, biases of q, k and v in one with a mask, periods of positions."""
    name, depth = "vit_small_patch16_dinov3_qkvb", 12
    net = timm.create_model(name, num_classes=0)
    own = dict(net.state_dict())
    for block in range(depth):
        at = f"blocks.{block}.attn."
        q, v = own.pop(f"{at}q_bias"), own.pop(f"{at}v_bias")
        own[f"{at}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        own[f"{at}qkv.bias_mask"] = torch.ones(3 * len(q))
        own[f"blocks.{block}.ls1.gamma"] = own.pop(f"blocks.{block}.gamma_1")
        own[f"blocks.{block}.ls2.gamma"] = own.pop(f"blocks.{block}.gamma_2")
    own["storage_tokens"] = own.pop("reg_token")
    own |= {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.zeros(16)}
    torch.save(own, tmp_path / "dinov3.pth")
    teacher: Any = TeacherSpec.parse(f"timm:{name}?weights={tmp_path / 'dinov3.pth'}").build()
    torch.testing.assert_close(teacher.model.state_dict(), net.state_dict())
    assert "from another layout" in teacher.notes[0]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("tower_alone", [True, False])
def test_open_clip_takes_the_image_tower_of_a_file_at_another_size_too(
    prefix: str, tower_alone: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = open_clip.create_model("ViT-S-32", load_weights=False)
    whole = net.visual.state_dict() if tower_alone else net.state_dict()
    torch.save({"state_dict": under(prefix, dict(whole))}, tmp_path / "clip.pt")
    spec = f"open_clip:ViT-S-32/none?weights={tmp_path / 'clip.pt'}"
    teacher: Any = TeacherSpec.parse(spec).build()
    torch.testing.assert_close(teacher.visual.state_dict(), net.visual.state_dict())
    larger: Any = TeacherSpec.parse(f"{spec}&size=288").build()
    assert larger.visual.positional_embedding.shape[0] == 82
    torch.testing.assert_close(
        larger.visual.positional_embedding[0], net.visual.positional_embedding[0]
    )


def test_what_only_training_needs_is_left_and_named(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "own.pth"
    torch.save({**state, "mask_token": torch.zeros(1, 64)}, path)
    (note,) = built(path).notes
    assert note == f"weights of own.pth: {len(state)} keys used, left mask_token."


def test_a_deeper_model_is_not_taken_for_a_shallow_one(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    more = {f"blocks.99.{name}": value for name, value in state.items()}
    torch.save(state | more, tmp_path / "deep.pth")
    with pytest.raises(TeacherError, match=r"holds the unknown blocks\.99"):
        built(tmp_path / "deep.pth")


def test_one_of_two_models_is_chosen_by_its_key_and_prefix(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    other = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "both.pth"
    torch.save({"nets": {"a": under("student.", state) | under("teacher.", other)}}, path)
    model = built(path, "&key=nets.a&prefix=teacher.").model
    torch.testing.assert_close(model.norm.weight, other["norm.weight"])
    with pytest.raises(UsageError, match="has no key 'b'; it holds a"):
        built(path, "&key=nets.b")


def test_code_inside_a_file_is_never_run_and_how_to_convert_it_is_said(tmp_path: Path) -> None:
    torch.save({"model": {}, "hook": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(
        TeacherError, match=r"holds pathlib\.\w+, which is code.*convert it once: x ="
    ):
        built(tmp_path / "code.pth")


def test_positions_are_resampled_to_the_size_as_timm_does(tmp_path: Path) -> None:
    small = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    torch.save(small.state_dict(), tmp_path / "w.pth")
    from phistill.pipeline.teachers.timm import fitted_state

    large = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=384)
    fitted = fitted_state(large, small.state_dict())
    rules: Any = timm.models.vision_transformer.checkpoint_filter_fn
    expected = rules(small.state_dict(), large)
    torch.testing.assert_close(fitted["pos_embed"], expected["pos_embed"])
    assert fitted["pos_embed"].shape == large.pos_embed.shape


def test_random_weights_are_said_to_be_random() -> None:
    assert "the weights are random." in check_teacher("timm:test_vit?random=0", "cpu").notes
