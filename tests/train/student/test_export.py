"""Folding the inverse normalizer, and the folder an export writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from phistill.cache import Cache
from phistill.cache.storage.new_folder import MARK
from phistill.errors import UsageError
from phistill.train import TrainConfig, export, load_run, load_student, train
from phistill.train.student.export import fold_heads
from phistill.train.student.pixels import to_images

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize("normalizer", ["phi-s", "pca", "standardize", "none"])
def test_folded_and_unfolded_outputs_agree_in_float64(
    normalizer: str, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=2, normalizer=normalizer))
    plain, other = load_run(tmp_path / "run").double(), load_run(tmp_path / "run").double()
    fold_heads(other)
    pixels = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    images = to_images(pixels, 8).double()
    assert plain.normalizers is not None
    with torch.inference_mode():
        normalised = plain.student(images).predictions
        raw = other.student(images).predictions
    for target in plain.targets:
        # In float64 throughout: NormalizerModule itself works in float32.
        fitted = plain.normalizers[target.key]
        unfolded = fitted.inverse_transform(normalised[target.key].numpy())
        torch.testing.assert_close(raw[target.key], torch.from_numpy(unfolded), rtol=0, atol=1e-9)


def test_an_exported_student_answers_like_the_run(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=2))
    folder = export(tmp_path / "run", tmp_path / "student")
    pixels = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    ours, theirs = load_run(tmp_path / "run").predict(pixels), load_student(folder).predict(pixels)
    for teacher, kinds in ours.items():
        for kind, value in kinds.items():
            # Both are float32: some 24 products of size 1 to 4 each.
            torch.testing.assert_close(theirs[teacher][kind], value, rtol=1e-4, atol=1e-4)


def test_timm_alone_loads_the_exported_backbone(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=2))
    folder = export(tmp_path / "run", tmp_path / "student")
    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    student = load_run(tmp_path / "run").student
    ours: Any = student.backbone.net
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(net.forward_features(images), ours.forward_features(images))


def test_an_export_that_was_stopped_is_written_again(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    whole = export(tmp_path / "run", tmp_path / "whole")
    names = [path.name for path in whole.iterdir()]
    # Killed after the first file, and after everything but the mark.
    for left in (["model.safetensors"], names):
        out = tmp_path / f"out-{len(left)}"
        out.mkdir()
        for name in (MARK, *left):
            (out / name).write_bytes(b"half")
        export(tmp_path / "run", out)
        assert sorted(path.name for path in out.iterdir()) == sorted(names)
        assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_an_export_does_not_write_into_a_folder_in_use(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    with pytest.raises(UsageError, match="not an empty folder"):
        export(tmp_path / "run", tmp_path)
    with pytest.raises(UsageError, match="not an exported student"):
        load_student(tmp_path / "run")


def test_weights_that_nothing_has_trained_are_not_exported(
    fitted_cache: Cache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    config = make_config(
        student="convnext_atto", student_options=options, num_steps=2, image_size=32
    )
    train(fitted_cache, tmp_path / "run", config)
    folder = export(tmp_path / "run", tmp_path / "export")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert not {"head.norm.weight", "head.norm.bias"} & weights.keys()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    expected = load_run(tmp_path / "run").predict(pixels)["a"]["patches"]
    torch.testing.assert_close(load_student(folder).predict(pixels)["a"]["patches"], expected)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = (to_images(pixels, 32) - 0.5) / 0.5
    own, _ = load_student(folder).student.backbone(images)
    features: torch.Tensor = net.forward_features(images)  # type: ignore[operator]
    torch.testing.assert_close(features.permute(0, 2, 3, 1), own)
