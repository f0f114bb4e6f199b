"""Compression changes the bytes on disk and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.cache.format.compression import compressor
from phistill.cache.upkeep.verify import verify
from phistill.errors import CorruptCache, UsageError

CacheFactory = Callable[..., Cache]


@pytest.mark.parametrize("compression", ["zstd:3", "gzip:5", "blosc:zstd:5"])
def test_a_compressed_cache_gives_the_same_rows(make_cache: CacheFactory, compression: str) -> None:
    plain = make_cache(num_rows=40, rejects=[3])
    small = make_cache(num_rows=40, rejects=[3], compression=compression, name="z")
    rows = np.random.default_rng(0).permutation(np.delete(np.arange(40), 3))
    for owner, kind in [("pixels", "pixels"), ("a", "patches"), ("a", "summary")]:
        expected = plain.reader(owner, kind)
        found = small.reader(owner, kind)
        np.testing.assert_array_equal(found.read(rows), expected.read(rows))
    assert verify(small).findings == ()


def test_a_flipped_byte_of_a_compressed_shard_is_found_by_a_read(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=16, compression="zstd:3")
    path = cache.path / "teachers/b/patches/c/0/0/0"
    good = path.read_bytes()
    for position in range(0, len(good), 97):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        with pytest.raises(CorruptCache, match="teacher b"):
            cache.reader("b", "patches").read(np.arange(16))
    path.unlink()
    with pytest.raises(CorruptCache, match="committed but missing"):
        cache.reader("b", "patches").read(np.arange(16))


@pytest.mark.parametrize("text", ["zip", "zstd", "zstd:0", "zstd:3:4", "blosc:x:3", "gzip:x"])
def test_an_unknown_compression_shows_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"write zstd:3, gzip:5 or blosc:zstd:5"):
        compressor(text)
