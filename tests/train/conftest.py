"""Caches a student can learn something from, with statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.stats import fit_stats
from phistill.train import TrainConfig

TEACHERS = (
    TeacherInfo(name="a", grid=(2, 2), widths={"patches": 12, "summary": 6}),
    TeacherInfo(name="b", grid=(4, 4), widths={"patches": 7}),
    TeacherInfo(name="c", grid=(3, 3), widths={"patches": 8, "summary": 5}),
)

TINY: dict[str, Any] = {
    "student": "vit_tiny_patch16_224",
    "student_options": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "head_width": 24,
    "batch_size": 8,
    "num_steps": 20,
    "precision": "float32",
    "device": "cpu",
    "tensorboard": False,
    "log_every": 1,
    "checkpoint_every": 0,
}
"""A student of some ten thousand weights."""


_BUILT: dict[str, Path] = {}
"""Caches already made in this session: training only reads them."""


def _once(name: str, build: Callable[[], Cache]) -> Cache:
    if name not in _BUILT:
        cache = build()
        fit_stats(cache)
        _BUILT[name] = cache.path
    return store.open(_BUILT[name])


@pytest.fixture
def fitted_cache(make_cache: Callable[..., Cache]) -> Cache:
    """64 images of 8 x 8 pixels, three teachers, moments fitted. Read only."""
    return _once("fitted", lambda: make_cache(num_rows=64, teachers=TEACHERS))


@pytest.fixture
def learnable_cache(make_cache: Callable[..., Cache], tmp_path: Path) -> Cache:
    """Teachers whose features are fixed linear maps of the image: a student can learn them."""
    generator = np.random.default_rng(8)
    maps = {"a": generator.standard_normal((48, 12)), "b": generator.standard_normal((12, 7))}

    def features(owner: str, kind: str, start: int, values: Any) -> Any:
        pixels = store.open(tmp_path / "small.cache").reader("pixels", "pixels")
        block = pixels.read(np.arange(start, start + len(values)))
        side = 4 if owner == "a" else 2
        small = block.reshape(len(block), 8 // side, side, 8 // side, side, 3) / 255
        tokens = small.transpose(0, 1, 3, 2, 4, 5).reshape(len(block), -1, side * side * 3)
        if kind == "summary":
            return (tokens.mean(1) @ maps["a"][:, :6]).astype(np.float32)
        scale = 30.0 if owner == "b" else 0.01
        return (tokens @ maps[owner] * scale + scale).astype(np.float16)

    return _once(
        "learnable",
        lambda: make_cache(num_rows=256, teachers=TEACHERS[:2], features=features, shard_rows=32),
    )


def tiny(**changes: Any) -> TrainConfig:
    """A TrainConfig of the tiny student."""
    return TrainConfig(**{**TINY, **changes})


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """``make_config(**changes)``: the tiny student's settings."""
    return tiny
