"""Weights files as training programs and hubs write them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from phistill.errors import TeacherError, UsageError
from phistill.pipeline.teachers.check import check_teacher
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.pipeline.teachers.weights import weights_sha256


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


@pytest.mark.parametrize("key", ["state_dict", "model", "teacher", "model_ema", "state_dict_ema"])
def test_a_checkpoint_of_a_training_run_is_read(
    key: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = {
        key: under("backbone.", state) | {"head.mlp.weight": torch.zeros(2, 2)},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    torch.testing.assert_close(
        built(tmp_path / "checkpoint.pth").model.norm.weight, state["norm.weight"]
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
    with pytest.raises(TeacherError, match=r"convert it once: torch\.save"):
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
