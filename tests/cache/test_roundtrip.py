"""What is written is what is read, by us and by zarr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from phistill.cache import Cache
from phistill.errors import CorruptCache, IncompleteCache, MissingRow, UsageError

CacheFactory = Callable[..., Cache]


def test_rows_read_in_any_order_equal_what_zarr_reads(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50)
    rows = np.random.default_rng(1).permutation(50)
    for owner, kind in [("pixels", "pixels"), ("a", "patches"), ("a", "summary"), ("b", "patches")]:
        ours = cache.reader(owner, kind).read(rows)
        path = cache.path / ("pixels" if owner == "pixels" else f"teachers/{owner}/{kind}")
        theirs: Any = zarr.open_array(path, mode="r")[:]
        np.testing.assert_array_equal(ours, theirs[rows])


def test_tensorstore_reads_the_same_rows(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50)
    for owner, kind in [("pixels", "pixels"), ("a", "patches"), ("b", "patches")]:
        path = cache.path / ("pixels" if owner == "pixels" else f"teachers/{owner}/{kind}")
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        theirs = tensorstore.open(spec).result().read().result()
        np.testing.assert_array_equal(cache.reader(owner, kind).read(np.arange(50)), theirs)


def test_a_shard_has_the_bytes_that_zarr_itself_writes(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50, rejects=[3])
    path = cache.path / "teachers/a/patches"
    written = {file: file.read_bytes() for file in sorted(path.glob("c/*/0/0"))}
    values: Any = zarr.open_array(path, mode="r")[:]
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(path, mode="r+")
        for start in range(0, 50, 16):
            array[start : start + 16] = values[start : start + 16]
    assert len(written) == 4
    for file, data in written.items():
        assert file.read_bytes() == data


def test_a_rejected_row_is_an_error_naming_it(make_cache: CacheFactory) -> None:
    cache = make_cache(rejects=[17])
    with pytest.raises(MissingRow, match=r"row 17 .* was rejected \(invented\)"):
        cache.reader("b", "patches").read(np.array([16, 17]))
    assert 17 not in cache.rows(split="all")


def test_an_uncommitted_row_is_an_error_naming_it(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50)
    (cache.path / "commits/b/000001.json").unlink()
    reopened = type(cache)(cache.path)
    with pytest.raises(MissingRow, match=r"row 20 .* is not committed"):
        reopened.reader("b", "patches").read(np.array([20]))
    with pytest.raises(IncompleteCache, match=r"b has 3 of 4 shards.*phistill extract"):
        reopened.require_complete()
    assert not np.isin(np.arange(16, 32), reopened.rows(split="all")).any()
    assert np.isin(np.arange(16, 32), reopened.rows(["a"], split="all")).all()


def test_train_and_heldout_rows_are_disjoint_and_complete(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=200, holdout=0.3)
    train, heldout = cache.rows(), cache.rows(split="heldout")
    assert not np.isin(train, heldout).any()
    assert sorted([*train, *heldout]) == list(range(200))
    # Binomial(200, 0.3): 60 expected, 6.5 standard deviation; five of them either side.
    assert 28 < heldout.size < 92


def test_every_flipped_byte_of_a_shard_is_found_by_a_read(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20)
    path = cache.path / "teachers/b/patches/c/0/0/0"
    good = path.read_bytes()
    rows = np.arange(16)
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(CorruptCache, match=r"teacher b|shard index"):
            cache.reader("b", "patches").read(rows)
    path.write_bytes(good)
    cache.reader("b", "patches").read(rows)


def test_an_unknown_teacher_lists_the_known_ones(make_cache: CacheFactory) -> None:
    with pytest.raises(UsageError, match="no teacher 'c'; it has: a, b"):
        make_cache().rows(["c"])


def test_an_edited_root_is_found(make_cache: CacheFactory) -> None:
    cache = make_cache()
    root = cache.path / "zarr.json"
    root.write_text(root.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CorruptCache, match="does not match its own digest"):
        type(cache)(cache.path)


def test_no_rows_are_an_empty_batch(make_cache: CacheFactory) -> None:
    found = make_cache().reader("a", "patches").read(np.empty(0, np.int64))
    assert found.shape == (0, 4, 12)
    assert found.dtype == np.float16


def test_a_root_whose_number_became_nan_is_damage(make_cache: CacheFactory) -> None:
    cache = make_cache()
    root = cache.path / "zarr.json"
    root.write_text(root.read_text().replace('"holdout": 0.2', '"holdout": NaN'))
    with pytest.raises(CorruptCache, match="is not JSON"):
        Cache(cache.path)
