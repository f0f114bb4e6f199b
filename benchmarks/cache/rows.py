"""The cache of the sections of run.py, and its files read from a cold disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from synthetic import write_cache

from phistill.cache import Cache, TeacherInfo

TOKENS, WIDTH, SHARD_ROWS, BATCH = 256, 768, 256, 128
ROW_BYTES = TOKENS * WIDTH * 2
NUM_LABELS = 100
WINDOW = 4
"""Shards of a window of the block order: few, since the benchmark's cache has few."""

TEACHER = TeacherInfo(name="t", grid=(16, 16), widths={"patches": WIDTH})


def make_cache(path: Path, num_rows: int) -> Cache:
    """A finished cache of random features, one teacher, no pixels; labels in random order."""
    labels = np.random.default_rng(1).integers(0, NUM_LABELS, num_rows)
    return write_cache(
        path, [TEACHER], num_rows, 0, SHARD_ROWS, label=[str(label) for label in labels]
    )


def shard_files(cache: Cache) -> list[Path]:
    """The file of each shard, in the order of shards."""
    home = cache.path / "teachers/t/patches/c"
    return [home / f"{shard}/0/0" for shard in cache.info.shards()]


def drop_page_cache(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
