"""Backbones, heads and what the student sees."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phistill.cache import Cache
from phistill.compute.signals import Interrupted
from phistill.errors import UsageError
from phistill.train import Progress, TrainConfig, checkpoint, evaluate, load_run, train
from phistill.train.loss.augment import draw_crop, input_size, photometric
from phistill.train.step.optim import learning_rate
from phistill.train.student.backbone import build_student
from phistill.train.targets import Target

Config = Callable[..., TrainConfig]

TARGETS = (
    Target(teacher="a.b", kind="patches", width=12, grid=(4, 4)),
    Target(teacher="a.b", kind="summary", width=6, grid=(1, 1)),
    Target(teacher="c", kind="summary", width=5, grid=(1, 1)),
)
TINY_VIT = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}

BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "vit_tiny_patch16_224": (TINY_VIT, (4, 4)),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, (1, 1)),
    "swin_tiny_patch4_window7_224": (
        {"patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)},
        (4, 4),
    ),
    "resnet10t": ({}, (1, 1)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_with_positions_can_be_the_student(name: str) -> None:
    options, grid = BACKBONES[name]
    config = TrainConfig(student=name, student_options=options, head_width=16)
    student = build_student(config, TARGETS, 32).eval()
    assert student.grid == grid
    assert student.summary_from == ("class" if name.startswith("vit") else "mean")
    predictions = student(torch.rand(2, 3, 32, 32)).predictions
    assert predictions["a.b/patches"].shape == (2, *grid, 12)
    assert predictions["c/summary"].shape == (2, 5)


def test_each_teacher_can_have_a_class_token_of_its_own() -> None:
    config = TrainConfig(student_options=TINY_VIT, head="linear", summary_from="class-per-teacher")
    student = build_student(config, TARGETS, 32).eval()
    assert student.backbone.num_prefix == 2
    output = student(torch.rand(1, 3, 32, 32))
    _, prefix = output.shared
    for slot, target in enumerate(TARGETS[1:]):
        expected = student.head(target)(prefix[:, slot])
        assert torch.equal(output.predictions[target.key], expected)


def test_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    config = TrainConfig(student_options=TINY_VIT, head_width=16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_student(config, TARGETS, 32).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = build_student(config, TARGETS, 32).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = TrainConfig(student_options=TINY_VIT, head_width=16, seed=1)
    third = build_student(other, TARGETS, 32).state_dict()
    assert not torch.equal(
        first["backbone.net.patch_embed.proj.weight"],
        third["backbone.net.patch_embed.proj.weight"],
    )


class Striped(nn.Module):
    """A student of one's own: one token per 16 x 16 pixels."""

    num_features = 10

    def __init__(self, image_size: int, scale: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 10, 16, 16)
        self.scale = scale

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.proj(images)
        return features * self.scale


def good_head(d: int, width: int, c: int) -> nn.Module:
    head = nn.Module()
    head.last = nn.Linear(d, c)
    head.forward = head.last.forward
    return head


def head_without_bias(d: int, width: int, c: int) -> nn.Module:
    head = nn.Module()
    head.last = nn.Linear(d, c, bias=False)
    return head


def test_student_and_head_can_be_ones_own() -> None:
    config = TrainConfig(
        student=f"{__name__}:Striped",
        student_options={"scale": 2.0},
        head=f"{__name__}:good_head",
    )
    student = build_student(config, TARGETS, 32)
    assert student.grid == (2, 2)
    assert student(torch.rand(1, 3, 32, 32)).predictions["a.b/patches"].shape == (1, 2, 2, 12)
    with pytest.raises(UsageError, match=r"final nn.Linear with a bias"):
        build_student(
            TrainConfig(student_options=TINY_VIT, head=f"{__name__}:head_without_bias"),
            TARGETS,
            32,
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_min": 0.5},
        {"crop_min": 0.5, "crop_resize": True},
        {"extra_image_sizes": (16, 24)},
        {"image_size": 16},
        {"grid_side": "teacher"},
        {"grid_side": "smaller", "grid_interpolation": "bicubic"},
        {"crop_min": 0.5, "grid_side": "teacher", "partition": "one"},
        {"crop_min": 0.1, "student_options": TINY_VIT | {"patch_size": 1}},
        {"summary_from": "class-per-teacher", "ema_decay": 0.9, "optimizer": "lamb"},
    ],
)
def test_every_way_of_seeing_trains_and_evaluates(
    changes: dict[str, Any], fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=5, **changes))
    lines = evaluate(tmp_path / "run", untrained=False)
    assert {line.teacher for line in lines} == {"a", "b", "c"}
    assert load_run(tmp_path / "run").predict(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_draws_depend_on_seed_and_step_alone() -> None:
    config = TrainConfig(crop_min=0.3, extra_image_sizes=(8, 24), brightness=0.5, noise=0.1)
    crops = [draw_crop(config, 10, step) for step in range(200)]
    assert crops == [draw_crop(config, 10, step) for step in range(200)]
    sides = {crop.side for crop in crops if crop is not None}
    assert sides == set(range(3, 10))
    assert {input_size(config, 16, step) for step in range(50)} == {8, 16, 24}
    images = torch.rand(6, 3, 8, 8)
    whole = photometric(images, config, step=3, first=10)
    halves = [photometric(images[i : i + 3], config, step=3, first=10 + i) for i in (0, 3)]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, photometric(images, config, step=4, first=10))


def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup=0.1)
    rates = [learning_rate(config, step, 101) for step in range(101)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_pixels_that_no_patch_covers_are_said() -> None:
    config = TrainConfig(student="vit_tiny_patch16_224", student_options=TINY_VIT, head_width=8)
    with pytest.warns(UserWarning, match=r"leave 4 of 36 pixels .* Take image_size=32\."):
        build_student(config, TARGETS, 36)


def test_pretrained_weights_are_fetched_once_and_their_absence_is_explained(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = make_config(num_steps=4, pretrained=True)
    with pytest.raises(UsageError, match=r"neither on this machine nor .* pretrained=false"):
        train(fitted_cache, tmp_path / "run", config)

    def stop(at: Progress) -> None:
        if at.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as with_hub:
        with_hub.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
        with pytest.raises(Interrupted):
            train(fitted_cache, tmp_path / "run", config, progress=stop)
    assert train(fitted_cache, tmp_path / "run", config).resumed_from == 2


def test_patches_need_not_be_square(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    options = make_config().student_options | {"patch_size": (2, 4)}
    config = make_config(num_steps=2, student_options=options)
    train(fitted_cache, tmp_path / "run", config)
    student = load_run(tmp_path / "run")
    assert student.student.grid == (4, 2)
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    assert student.predict(pixels)["a"]["patches"].shape == (2, 4, 12)
    with pytest.raises(UsageError, match=r"cuts square windows .* grid is 4 x 2"):
        train(fitted_cache, tmp_path / "other", make_config(student_options=options, crop_min=0.5))
    with pytest.raises(UsageError, match=r"wanted uint8 \(b, S, S, 3\)"):
        student.predict(torch.zeros(2, 8, 16, 3, dtype=torch.uint8))


def test_averaged_weights_come_with_averaged_running_statistics(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        student="resnet10t", student_options={}, image_size=32, num_steps=6, ema_decay=0.9
    )
    train(fitted_cache, tmp_path / "run", config)
    stored = checkpoint.load(tmp_path / "run", 6)
    name = "backbone.net.bn1.running_mean"
    own, average = stored.tensors[f"student/{name}"], stored.tensors[f"ema/{name}"]
    assert not torch.equal(own, average)
    loaded = load_run(tmp_path / "run").student.state_dict()
    assert torch.equal(loaded[name], average)
    assert torch.equal(
        loaded["backbone.net.bn1.weight"], stored.tensors["ema/backbone.net.bn1.weight"]
    )
