"""Reads without checksums: from a map of the shard where it is in memory, else as any read."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.errors import CorruptCache

CacheFactory = Callable[..., Cache]

LINUX = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux says what is cached")


def shards(cache: Cache) -> list[Path]:
    return sorted((cache.path / "teachers/a/patches/c").glob("*/0/0"))


def maps(cache: Cache) -> int:
    """How many of the shards this process has mapped."""
    text = Path("/proc/self/maps").read_text()
    return sum(str(path) in text for path in shards(cache))


@LINUX
def test_unchecked_rows_are_the_checked_ones_and_come_from_a_map(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=64)
    reader = cache.reader("a", "patches")
    rows = np.random.default_rng(0).permutation(64)
    assert reader.read(rows, check=False).tobytes() == reader.read(rows).tobytes()
    assert maps(cache) == len(shards(cache)) == 4
    descriptors = len(os.listdir("/proc/self/fd"))
    del reader
    gc.collect()
    assert maps(cache) == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors - 8, "a file, and one of its map"


@pytest.mark.parametrize("how", ["from the disk", "a system that cannot say what is cached"])
def test_rows_that_are_not_in_memory_are_read(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cache = make_cache(num_rows=64)
    reader = cache.reader("a", "patches")
    rows = np.arange(64)
    expected = reader.read(rows)
    if how == "from the disk":
        for path in shards(cache):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    assert reader.read(rows, check=False).tobytes() == expected.tobytes()


def test_a_file_that_was_cut_is_an_error_and_not_a_dead_process(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=64)
    reader = cache.reader("a", "patches")
    reader.read(np.arange(64), check=False)  # all shards are mapped now
    os.truncate(shards(cache)[2], 100)
    with pytest.raises(CorruptCache, match=r"row 33 \(shard 2, row 1 of it\)"):
        reader.read(np.array([0, 33]), check=False)
    assert reader.read(np.array([31]), check=False).size
