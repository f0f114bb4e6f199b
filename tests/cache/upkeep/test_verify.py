"""Whatever byte is changed, `verify` finds it and names teacher, shard and rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from phistill.cache import Cache
from phistill.cache.upkeep.verify import VerifyReport, discard, verify
from phistill.errors import CorruptCache, PhistillError
from tests.conftest import FULL

CacheFactory = Callable[..., Cache]
FLIPS_PER_FILE = 250 if FULL else 20
FLIPS_PER_SHARD = 3500 if FULL else 100


def reopened(cache: Cache) -> VerifyReport:
    """What a fresh process would find; damage to the root itself is an error on opening."""
    return verify(Cache(cache.path))


def test_a_whole_cache_has_no_findings(make_cache: CacheFactory) -> None:
    report = reopened(make_cache())
    assert report.findings == ()
    assert report.num_files == 4 * (1 + 2 + 1)


@pytest.mark.parametrize("seed", range(4 if FULL else 1))
def test_every_sampled_flipped_byte_of_every_file_is_found(
    seed: int, make_cache: CacheFactory, record_property: Callable[[str, object], None]
) -> None:
    cache = make_cache(num_rows=20)
    generator = np.random.default_rng(seed)
    paths = [path for path in cache.path.rglob("*") if path.is_file()]
    assert len(paths) > 15
    missed = []
    flips = 0
    for path in paths:
        if path.name == ".lock":
            continue
        good = path.read_bytes()
        for _ in range(FLIPS_PER_FILE):
            flips += 1
            position = int(generator.integers(len(good)))
            bad = bytearray(good)
            bad[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(bad)
            try:
                found = bool(reopened(cache).findings)
            except (CorruptCache, PhistillError):
                found = True
            # Some flips change only the white space of a zarr.json.
            same = path.name == "zarr.json" and _says_the_same(good, bytes(bad))
            if not found and not same:
                missed.append((path, position))
        path.write_bytes(good)
    assert missed == []
    assert reopened(cache).findings == ()
    record_property("G6", f"{flips:,} flipped bytes in {len(paths)} files: all found by verify")


def test_no_flipped_byte_of_a_shard_is_read_as_a_value(
    make_cache: CacheFactory, record_property: Callable[[str, object], None]
) -> None:
    """A normal read of the row either gives the stored bytes or raises."""
    cache = make_cache(num_rows=20)
    rows = np.arange(20)
    generator = np.random.default_rng(1)
    flips = silent = 0
    for owner, kind in (("a", "patches"), ("a", "summary"), ("pixels", "pixels")):
        good = cache.reader(owner, kind).read(rows)
        for path in (path for path in cache.path.rglob("*") if f"{kind}/c/" in path.as_posix()):
            if path.is_dir() or owner not in path.as_posix():
                continue
            content = path.read_bytes()
            for _ in range(FLIPS_PER_SHARD):
                bad = bytearray(content)
                bad[int(generator.integers(len(bad)))] ^= 1 << int(generator.integers(8))
                path.write_bytes(bad)
                flips += 1
                try:
                    found = cache.reader(owner, kind).read(rows)
                except CorruptCache:
                    continue
                silent += not np.array_equal(found, good)
            path.write_bytes(content)
    assert flips >= 6 * FLIPS_PER_SHARD
    assert silent == 0
    record_property("G6", f"{flips:,} flipped bytes of shards: 0 read as another value")


def _says_the_same(good: bytes, bad: bytes) -> bool:
    import json

    try:
        return bool(json.loads(good) == json.loads(bad))
    except ValueError:
        return False


def test_two_swapped_shards_are_found_though_every_checksum_holds(make_cache: CacheFactory) -> None:
    cache = make_cache()
    first, second = (cache.path / f"teachers/a/patches/c/{n}/0/0" for n in (0, 1))
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)
    Cache(cache.path).reader("a", "patches").read(np.arange(32))  # rows alone look right
    findings = reopened(cache).findings
    assert [(f.owner, f.shard) for f in findings] == [("a", 0), ("a", 1)]
    assert "is whole, but not the file that was committed" in str(findings[0])


def test_damaged_rows_are_named(make_cache: CacheFactory) -> None:
    cache = make_cache()
    path = cache.path / "teachers/b/patches/c/1/0/0"
    row_bytes = 9 * 7 * 2 + 4
    data = bytearray(path.read_bytes())
    data[row_bytes * 3 + 10] ^= 1
    data[row_bytes * 5] ^= 128
    path.write_bytes(data)
    (finding,) = reopened(cache).findings
    assert finding.rows == (19, 21)
    assert "2 of 16 rows are damaged (rows 19, 21)" in str(finding)


@pytest.mark.parametrize("how", ["cut", "gone", "record gone", "record of another shard"])
def test_truncation_deletion_and_lost_records_are_found(make_cache: CacheFactory, how: str) -> None:
    cache = make_cache()
    path = cache.path / "teachers/a/summary/c/2/0"
    record = cache.path / "commits/a/000002.json"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "gone":
        path.unlink()
    elif how == "record gone":
        record.unlink()
    else:
        shutil.copy(cache.path / "commits/a/000001.json", record)
    (finding,) = reopened(cache).findings
    assert (finding.owner, finding.shard) == ("a", 2)
    assert finding.unfinished == (how == "record gone")


def test_an_edited_array_document_is_found_and_restored(make_cache: CacheFactory) -> None:
    cache = make_cache()
    before = cache.digest()
    path = cache.path / "teachers/a/patches/zarr.json"
    path.write_text(path.read_text().replace('"float16"', '"float32"'))
    with pytest.raises(CorruptCache, match="does not describe the array"):
        Cache(cache.path).reader("a", "patches")
    report = reopened(cache)
    assert discard(Cache(cache.path), report) == 0
    assert Cache(cache.path).digest() == before


def test_discarded_shards_count_as_missing(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = make_cache()
    (cache.path / "teachers/a/summary/c/2/0").unlink()
    assert discard(cache, reopened(cache)) == 1
    assert Cache(cache.path).missing_shards("a") == [2]
    assert Cache(cache.path).missing_shards("b") == []


def test_damage_that_no_extraction_can_undo_says_so(make_cache: CacheFactory) -> None:
    cache = make_cache()
    (cache.path / "index/0000.parquet").write_bytes(b"x")
    with pytest.raises(CorruptCache, match="cannot be repaired"):
        discard(cache, reopened(cache))


@pytest.mark.parametrize("how", ["foreign", "missing", "more"])
def test_a_record_of_other_kinds_than_its_teacher_has_is_found(
    make_cache: CacheFactory, how: str
) -> None:
    """``b`` has patches alone, ``a`` patches and a summary."""
    cache = make_cache()
    owner = "b" if how != "missing" else "a"
    record = cache.commits(owner)[1]
    files = dict(record.files)
    entry = files.pop(next(iter(files))) if how != "more" else next(iter(files.values()))
    if how != "missing":
        files["teachers/b/summary/c/1/0"] = entry
    record = replace(record, files=files)
    (cache.path / f"commits/{owner}/000001.json").write_bytes(record.to_bytes())
    (finding,) = reopened(cache).findings
    assert (finding.owner, finding.shard) == (owner, 1)
    assert "other files than its shard has" in finding.what
    with pytest.raises(CorruptCache, match="other files than its shard has"):
        Cache(cache.path).rows()


def test_a_teacher_whose_group_is_damaged_is_said_once(make_cache: CacheFactory) -> None:
    cache = make_cache()
    path = cache.path / "teachers/a/zarr.json"
    path.write_text(path.read_text().replace('"grid"', '"gird"'))
    (finding,) = reopened(cache).findings
    assert finding.path == "teachers/a/zarr.json"
