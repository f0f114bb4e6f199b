"""A shard of an array is one file, or several where rows are large: nobody who reads can tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from phistill.cache import Cache
from phistill.cache.dataset import CacheBatches
from phistill.cache.format.info import FILE_BYTES, CacheInfo
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.pack import pack
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.stage import Selection, stage
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CorruptCache
from tests.conftest import CacheFactory, facts

SMALL = 400
"""Bytes of a file: rows of a's patches have 96, so 4 fit; of its summary 24 and 16; of b's patches
126 and 2; of pixels 192 and 2."""

FILES = {"pixels/pixels": 2, "a/patches": 4, "a/summary": 16, "b/patches": 2}


@pytest.fixture
def several(make_cache: CacheFactory) -> Cache:
    """Shards of 16 rows in up to 8 files an array, 50 rows, two of them rejected."""
    return make_cache(name="several.cache", file_bytes=SMALL, rejects=(5, 20))


@pytest.fixture
def single(make_cache: CacheFactory) -> Cache:
    """The same rows, a file for each shard of an array."""
    return make_cache(name="single.cache", rejects=(5, 20))


def values(cache: Cache) -> dict[str, Any]:
    rows = cache.rows(split="all")
    return {
        f"{owner}/{kind}": cache.reader(owner, kind).read(rows)
        for owner in cache.owners
        for kind in cache.shapes(owner)
    }


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


@pytest.mark.parametrize(
    ("row_bytes", "file_bytes", "shard_rows", "expected"),
    [
        (2**19, FILE_BYTES, 1024, 128),
        (4096 * 1280 * 2, FILE_BYTES, 1024, 4),
        (4096, FILE_BYTES, 4096, 4096),
        (10**9, FILE_BYTES, 1024, 1),
        (100, 399, 16, 2),
    ],
)
def test_rows_of_a_file_are_the_largest_power_of_two_within_its_bytes(
    row_bytes: int, file_bytes: int, shard_rows: int, expected: int
) -> None:
    info = CacheInfo(
        seed=0, shard_rows=shard_rows, file_bytes=file_bytes, holdout=0.0, pixel_size=0,
        views=({},), decode={},
    )  # fmt: skip
    assert info.rows_per_file(row_bytes) == expected


def test_each_array_has_files_of_its_own_size_and_the_record_names_them_all(several: Cache) -> None:
    for owner in several.owners:
        for kind, layout in several.layouts(owner).items():
            assert layout.file_rows == FILES[f"{owner}/{kind}"]
        for shard, record in several.commits(owner).items():
            start, stop = several.info.shard_range(shard)
            expected = sum(
                -(-(stop - start) // n.file_rows) for n in several.layouts(owner).values()
            )
            assert len(record.files) == expected
            for path, (size, _) in record.files.items():
                assert (several.path / path).stat().st_size == size
    assert verify(several).findings == ()


def test_readers_of_all_sorts_give_what_they_give_of_a_cache_with_one_file_a_shard(
    several: Cache, single: Cache
) -> None:
    assert_equal(values(several), values(single))
    pack(several)
    assert_equal(values(Cache(several.path)), values(single))
    rows = np.random.default_rng(0).permutation(single.rows(split="all"))
    for mode in ("full", "none"):
        both = [CacheBatches(cache, batch_size=4, order=mode) for cache in (several, single)]
        for one, two in zip(*both, strict=True):
            assert all((one[key] == two[key]).all() for key in two)
    for owner, kind in (("a", "patches"), ("pixels", "pixels")):
        np.testing.assert_array_equal(
            several.reader(owner, kind).read(rows), single.reader(owner, kind).read(rows)
        )


def test_block_order_mixes_blocks_of_the_largest_arrays_files(several: Cache) -> None:
    assert several.block_rows(["a"]) == 2
    assert several.block_rows([]) == 2
    batches = list(
        CacheBatches(several, {"a": ["summary"]}, batch_size=4, order="block", pixels=False)
    )
    seen = np.concatenate([batch["row"].numpy() for batch in batches])
    assert len(set(seen.tolist())) == len(seen)
    np.testing.assert_array_equal(
        np.concatenate([batch["a/summary"].numpy() for batch in batches]),
        several.reader("a", "summary").read(seen),
    )


def test_zarr_reads_the_arrays_without_us(several: Cache, single: Cache) -> None:
    rows = several.rows(split="all")
    for owner, kind in (("a", "patches"), ("a", "summary"), ("b", "patches")):
        array: Any = zarr.open_array(several.path, path=f"teachers/{owner}/{kind}", mode="r")
        assert array.shards[0] == FILES[f"{owner}/{kind}"]
        np.testing.assert_array_equal(
            array[:][rows], single.reader(owner, kind).read(rows), err_msg=kind
        )


def test_a_compressed_cache_has_them_too(make_cache: CacheFactory, single: Cache) -> None:
    cache = make_cache(file_bytes=SMALL, rejects=(5, 20), compression="zstd:3")
    assert_equal(values(cache), values(single))
    assert verify(cache).findings == ()


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100 + 3] ^= 1  # of the second row of the file
    path.write_bytes(data)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def missing(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


@pytest.mark.parametrize("damage", [flip, cut, missing, swap])
def test_one_damaged_file_of_several_is_named_with_its_rows_and_repaired(
    damage: Callable[[Path, Path], None], several: Cache, single: Cache
) -> None:
    before, record, digest = values(several), several.commits("a")[1], several.digest()
    path = several.path / "teachers/a/patches/c/5/0/0"  # rows 20 to 23, the second of shard 1
    other = several.path / "teachers/a/patches/c/6/0/0"
    damage(path, other)
    again = Cache(several.path)
    report = verify(again)
    assert {(finding.owner, finding.shard) for finding in report.damaged} == {("a", 1)}
    assert any(finding.path.endswith("c/5/0/0") for finding in report.damaged)
    assert len(report.damaged) == (2 if damage is swap else 1)
    if damage is not swap:  # two whole files in each other's places only sha256 tells apart
        with pytest.raises(CorruptCache, match=r"c/5/0/0|row 21 \(shard 1, row 5 of it\)"):
            again.reader("a", "patches").read(np.arange(21, 24))
    np.testing.assert_array_equal(
        again.reader("a", "patches").read(np.array([16, 28])),
        single.reader("a", "patches").read(np.array([16, 28])),
    )
    assert discard(again, report) == 1
    assert again.missing_shards("a") == [1]
    again.commit_shard(
        "a", 1, {kind: single_rows(single, kind) for kind in ("patches", "summary")},
        images=facts(16, 16), reasons=record.reasons, environment={},
    )  # fmt: skip
    assert verify(again).findings == ()
    assert_equal(values(Cache(several.path)), before)
    assert again.digest() == digest


def single_rows(single: Cache, kind: str) -> Any:
    """Shard 1 as it was written, the rejected row too."""
    return zarr.open_array(single.path, path=f"teachers/a/{kind}", mode="r")[16:32]


def test_copies_merges_and_takedowns_keep_every_row(
    several: Cache, single: Cache, tmp_path: Path
) -> None:
    staged = stage(several, tmp_path / "staged").cache
    assert_equal(values(staged), values(single))
    held = stage(several, tmp_path / "held", Selection(split="heldout")).cache
    np.testing.assert_array_equal(
        held.reader("b", "patches").read(held.rows(split="all")),
        single.reader("b", "patches").read(single.rows(split="heldout")),
    )
    few = stage(several, tmp_path / "few", Selection(max_bytes=20_000)).cache
    assert 0 < few.num_rows < 50
    assert sum(record.num_bytes for o in few.owners for record in few.commits(o).values()) <= 20_000
    target = Cache(stage(several, tmp_path / "half").cache.path)
    with target.writing():
        target.forget_shards("a", [1, 3])
        assert merge(target, several) == 2
    assert target.digest() == staged.digest()
    remove_images(several, ["image-00017"])
    left = compact(several, str(tmp_path / "left"), drop_removed=True).cache
    kept = several.rows(split="all")
    np.testing.assert_array_equal(
        left.reader("a", "patches").read(left.rows(split="all")),
        single.reader("a", "patches").read(kept),
    )
    for one in (staged, held, few, left):
        assert verify(one).findings == ()


def test_rows_added_piece_by_piece_make_the_same_bytes(several: Cache) -> None:
    digest, record = several.digest(), several.commits("a")[0]
    arrays: dict[str, Any] = {}
    for kind in ("patches", "summary"):
        arrays[kind] = zarr.open_array(several.path, path=f"teachers/a/{kind}", mode="r")[:16]
    with several.writing():
        several.forget_shard("a", 0)
        writer = several.shard_writer("a", 0)
        for start, stop in ((0, 3), (3, 9), (9, 10), (10, 16)):
            part = {kind: np.array(rows[start:stop]) for kind, rows in arrays.items()}
            for file in writer.add(part):
                for rows in part.values():
                    rows[:] = 0  # the writer has its own
                writer.write(file)
        with pytest.raises(ValueError, match="rows to 17"):
            writer.add({kind: rows[:1] for kind, rows in arrays.items()})
        writer = several.shard_writer("a", 0)
        for file in writer.add({kind: rows[:15] for kind, rows in arrays.items()}):
            writer.write(file)
        with pytest.raises(ValueError, match="not all of its 5 files"):
            several.commit(writer, images=facts(0, 16), reasons={}, environment={})
        for file in writer.add({kind: rows[15:] for kind, rows in arrays.items()}):
            writer.write(file)
        several.commit(writer, images=facts(0, 16), reasons=record.reasons, environment={})
    assert several.digest() == digest
