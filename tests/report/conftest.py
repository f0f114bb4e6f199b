"""A cache with two teachers of very different size, and tiny runs on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.report import report
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train

TEACHERS = (
    TeacherInfo(name="loud", grid=(3, 3), widths={"patches": 12, "summary": 6}),
    TeacherInfo(name="quiet", grid=(2, 4), widths={"patches": 7}),
)
QUIET = 2.0**-7
"""Factor on the quiet teacher: a power of two, so that float16 rounds nothing away."""


def quieten(owner: str, kind: str, start: int, values: Any) -> Any:
    return values * values.dtype.type(QUIET) if owner == "quiet" else values


def tiny(**changes: Any) -> TrainConfig:
    """Two steps of a student of some thousand weights."""
    settings: dict[str, Any] = {
        "student": "vit_tiny_patch16_224",
        "student_options": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "head_width": 16,
        "batch_size": 8,
        "num_steps": 3,
        "precision": "float32",
        "device": "cpu",
        "tensorboard": False,
        "log_every": 1,
        "checkpoint_every": 0,
    }
    return TrainConfig(**{**settings, **changes})


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """``make_config(**changes)``: the tiny student's settings."""
    return tiny


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cache, the runs and the page are kept: a report changes none of them."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def cache(make_cache: Callable[..., Cache], shelf: Path) -> Cache:
    """64 images of noise, a fifth held out, statistics taken."""
    kept = shelf / "small.cache"
    if not kept.exists():
        made = make_cache(num_rows=64, teachers=TEACHERS, features=quieten)
        fit_stats(made)
        shutil.move(made.path, kept)
    return store.open(kept)


@pytest.fixture
def runs(cache: Cache, shelf: Path) -> tuple[Path, Path]:
    """One run per normalizer: phi-s and none."""
    paths = shelf / "runs" / "balanced", shelf / "runs" / "raw"
    for path, normalizer in zip(paths, ("phi-s", "none"), strict=True):
        if not path.exists():
            train(cache, path, tiny(normalizer=normalizer))
    return paths


@pytest.fixture
def page(cache: Cache, runs: tuple[Path, Path], shelf: Path) -> str:
    """The report of both runs."""
    out = shelf / "report.html"
    if not out.exists():
        report(cache, runs, out, device="cpu")
    return out.read_text("utf-8")
