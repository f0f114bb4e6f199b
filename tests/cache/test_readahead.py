"""Shards asked for ahead: they wait in the page cache, and nothing else changes."""

import os
import time
from pathlib import Path

import pytest

from phistill.cache import Cache
from phistill.cache.readahead import ReadAhead
from phistill.errors import CorruptCache
from tests.conftest import CacheFactory


def is_cached(path: Path) -> bool:
    """Whether the whole file can be read without waiting for the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return os.preadv(descriptor, [bytearray(size)], 0, os.RWF_NOWAIT) == size
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def files_of(cache: Cache, owner: str) -> list[Path]:
    return [cache.path / path for record in cache.commits(owner).values() for path in record.files]


def test_expected_shards_come_into_the_page_cache(make_cache: CacheFactory) -> None:
    cache = make_cache()
    files = files_of(cache, "pixels")
    for path in files:
        drop(path)
    if any(is_cached(path) for path in files):
        pytest.skip("this file system keeps its pages: nothing to read ahead")
    with ReadAhead(
        [cache.reader("pixels", "pixels")], block_rows=cache.info.shard_rows
    ) as readahead:
        readahead.expect(cache.rows(split="all"))
        deadline = time.monotonic() + 20
        while not all(is_cached(path) for path in files) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert all(is_cached(path) for path in files)


def test_a_missing_shard_is_left_to_whoever_reads_its_rows(make_cache: CacheFactory) -> None:
    cache = make_cache()
    reader = cache.reader("pixels", "pixels")
    files_of(cache, "pixels")[0].unlink()
    reader.prefetch(range(16))
    reader.prefetch(range(16 * 10**6, 16 * 10**6 + 16))
    with pytest.raises(CorruptCache, match="committed but missing"):
        reader.read(cache.rows(split="all"))
