"""A cache of several groups for the tests of fit_stats, and what they compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo

CacheFactory = Callable[..., Cache]


TEACHERS = (
    TeacherInfo(
        name="a",
        grid=(8, 8),
        widths={"patches": 12, "summary": 6, "registers": 12},
        num_registers=2,
    ),
    TeacherInfo(name="b", grid=(4, 4), widths={"patches": 7}),
)


ARRAYS = [("a", "patches"), ("a", "summary"), ("a", "registers"), ("b", "patches")]


@pytest.fixture
def cache(
    make_cache: CacheFactory, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """300 rows in 19 shards: several groups, several pieces in each. Written once, then copied."""
    template = tmp_path_factory.getbasetemp() / "template.cache"
    if not template.exists():
        made = make_cache(num_rows=300, teachers=TEACHERS, rejects=[3, 40, 41, 299])
        made.path.rename(template)
    return store.open(shutil.copytree(template, tmp_path / "copy.cache"))


def statistics(cache: Cache) -> dict[str, bytes]:
    """Every file that fit_stats wrote."""
    return {
        path.relative_to(cache.path).as_posix(): path.read_bytes()
        for part in ("moments", "normalizers")
        for path in sorted(cache.path.glob(f"teachers/*/{part}/**/*.safetensors"))
    }


def vectors(cache: Cache, teacher: str, kind: str, split: Any = "train") -> np.ndarray:
    values = cache.reader(teacher, kind).read(cache.rows([teacher], split=split))
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def copy_of(cache: Cache, name: str) -> Cache:
    path = cache.path.with_name(name)
    shutil.copytree(cache.path, path)
    return store.open(path)
