"""The cache of the sections of run.py: 256 x 1024 float16 a row, made in little time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic import commit, empty_cache

from phistill.cache import Cache, TeacherInfo

TOKENS, WIDTH, SHARD_ROWS = 256, 1024, 128
ROW_BYTES = TOKENS * WIDTH * 2


def num_rows_of(gib: float) -> int:
    return int(gib * 2**30 / ROW_BYTES)


def make_cache(path: Path, num_rows: int) -> Cache:
    """A cache of one teacher, ``t0``, of ``shard_features``."""
    cache = empty_cache(path, num_rows, 0, SHARD_ROWS)
    add_teacher(cache, "t0", shard_features())
    return cache


def shard_features() -> np.ndarray:
    """Correlated channels of different mean and scale; (SHARD_ROWS, TOKENS, WIDTH), float16."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.5, 2.0, WIDTH, dtype=np.float32)
    values = rng.standard_normal((SHARD_ROWS, TOKENS, WIDTH), dtype=np.float32) * scale + 1
    values += rng.standard_normal((SHARD_ROWS, 1, WIDTH), dtype=np.float32)
    return values.astype(np.float16)


def add_teacher(cache: Cache, name: str, features: np.ndarray) -> None:
    cache.add_teacher(TeacherInfo(name=name, grid=(16, 16), widths={"patches": WIDTH}))
    commit_missing(cache, name, features)


def commit_missing(cache: Cache, name: str, features: np.ndarray) -> None:
    """Commit what is missing; shards differ only in the order of their rows."""
    for shard in cache.missing_shards(name):
        start, stop = cache.info.shard_range(shard)
        values = np.roll(features, shard, axis=0)[: stop - start]
        commit(cache, name, shard, {"patches": values})
