"""An array of codes in a cache: read as features, and never taken for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.codes import FittedCodec, RowCodec, bytes_for, coded_teacher
from phistill.cache.dataset import CacheDataset
from phistill.cache.format import names
from phistill.cache.joined import JoinedCaches
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.pack import pack
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CacheMismatch, CorruptCache, UsageError
from phistill.stats import Moments
from phistill.stats.codes import fit_codec
from tests.conftest import empty_cache, facts
from tests.stats.codes.conftest import features

CacheFactory = Callable[..., Cache]
TEACHER = TeacherInfo(name="a", grid=(4, 3), widths={"patches": 16, "summary": 5})
NUM_ROWS = 40
ROWS = features(NUM_ROWS, (4, 3), 16)
SUMMARIES = np.random.default_rng(0).normal(size=(NUM_ROWS, 5)).astype(np.float32)
CODEC = fit_codec(Moments.of(ROWS), [ROWS], grid=(4, 3), num_bytes=bytes_for(2, (12, 16)))


def coded_cache(path: Path, codec: RowCodec = CODEC, rows: Any = ROWS) -> Cache:
    """Every row of ROWS, coded by the cache; row 17 is rejected."""
    teacher = coded_teacher(TEACHER, {"patches": FittedCodec(codec, 0.02, codec.num_bytes)})
    cache = empty_cache(path, [], num_rows=NUM_ROWS, shard_rows=16)
    cache.add_teacher(teacher, {"patches": codec})
    for shard in cache.info.shards():
        commit(cache, shard, rows)
    return cache


def commit(cache: Cache, shard: int, rows: Any = ROWS) -> None:
    start, stop = cache.info.shard_range(shard)
    patches = rows[start:stop].copy()
    reasons = {17 - start: "invented"} if start <= 17 < stop else {}
    patches[list(reasons)] = np.nan
    cache.commit_shard(
        "a",
        shard,
        {"patches": patches, "summary": SUMMARIES[start:stop]},
        images=facts(start, stop - start),
        reasons=reasons,
        environment={},
    )


def test_features_that_are_committed_are_coded_and_read_back_decoded(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    rows = np.random.default_rng(1).permutation(np.delete(np.arange(NUM_ROWS), 17))
    reader = cache.reader("a", "patches")
    read = reader.read(rows)
    assert (reader.row_shape, reader.dtype.name, read.dtype.name) == (
        (12, 16),
        "float32",
        "float32",
    )
    np.testing.assert_array_equal(read, CODEC.decode(CODEC.encode(ROWS[rows])))
    out = np.empty_like(read)
    assert reader.read(rows, out) is out
    np.testing.assert_array_equal(out, read)
    np.testing.assert_array_equal(cache.reader("a", "summary").read(rows), SUMMARIES[rows])


def test_codes_are_given_to_who_asks_for_them_and_have_no_name_of_features(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    codes = cache.reader("a", "patches-codes").read(np.arange(8))
    np.testing.assert_array_equal(codes, CODEC.encode(ROWS[:8]))
    root: Any = zarr.open_group(cache.path, mode="r")
    assert "patches" not in root["teachers/a"]
    np.testing.assert_array_equal(root["teachers/a/patches-codes"][:8], codes)
    with pytest.raises(UsageError, match="a has no patches; it has patches-codes, summary"):
        cache.array_reader("a", "patches")


def test_a_dataset_gives_decoded_features_or_codes(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    assert CacheDataset(cache).read([0])["a/patches"].shape == (1, 12, 16)
    asked = CacheDataset(cache, {"a": ["patches-codes"]})
    assert asked.read([0])["a/patches-codes"].shape == (1, CODEC.num_bytes)


def test_what_codes_lose_is_in_the_commit_record_and_in_its_pack(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    kept = np.delete(np.arange(NUM_ROWS), 17)
    expected = [
        CODEC.lost_share(ROWS[kept[(kept >= start) & (kept < start + 16)]]) for start in (0, 16, 32)
    ]
    for _ in range(2):
        lost = store.open(cache.path).commits("a").lost("patches-codes")
        np.testing.assert_allclose(lost, expected, atol=1e-9)  # a step of what is stored
        pack(cache, everything=True)
    assert verify(store.open(cache.path)).findings == ()


def test_who_brings_codes_says_what_they_lose(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    record = cache.commits("a")[0]
    cache.forget_shard("a", 0)
    found = CODEC.measured(ROWS[:16])
    arrays = {"patches-codes": found.codes, "summary": SUMMARIES[:16]}
    given: dict[str, Any] = {"images": facts(0, 16), "reasons": {}, "environment": {}}
    with pytest.raises(ValueError, match="a needs"):
        cache.commit_shard("a", 0, arrays, **given)
    again = cache.commit_shard("a", 0, arrays, **given, lost={"patches-codes": found.lost_share})
    assert again == record, "the same to the byte"


def test_a_shard_that_is_forgotten_comes_back_to_the_byte(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    before = cache.digest()
    path = cache.path / "teachers/a/patches-codes/c/1/0"
    path.write_bytes(b"\0" * path.stat().st_size)
    report = verify(cache)
    assert [(f.owner, f.shard) for f in report.findings] == [("a", 1)]
    discard(cache, report)
    commit(cache, 1)
    assert (verify(cache).findings, cache.digest()) == ((), before)


def test_flipped_bits_of_codes_are_found_by_reads_and_by_verify(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    path = cache.path / "teachers/a/patches-codes/c/0/0"
    data = path.read_bytes()
    for place in range(0, 16 * (CODEC.num_bytes + 4), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        row = place // (CODEC.num_bytes + 4)
        with pytest.raises(CorruptCache, match=f"row {row} "):
            store.open(cache.path).reader("a", "patches").read(np.arange(16))
        (finding,) = verify(store.open(cache.path)).findings
        assert finding.rows == (row,)


def test_a_codec_that_was_changed_or_lost_is_named(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "c")
    path = cache.path / names.codec("a", "patches")
    data = path.read_bytes()
    other = fit_codec(Moments.of(ROWS), [ROWS[:20]], grid=(4, 3), num_bytes=CODEC.num_bytes)
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), other.to_bytes(), None):
        path.unlink() if wrong is None else path.write_bytes(wrong)
        opened = store.open(cache.path)
        with pytest.raises(CorruptCache, match=r"codecs/patches\.safetensors"):
            opened.reader("a", "patches")
        report = verify(opened)
        (finding,) = report.findings
        assert finding.path == names.codec("a", "patches")
        assert str(finding).count("patches.safetensors") == 1
        with pytest.raises(CorruptCache, match="Restore that file"):
            discard(opened, report)


def test_caches_of_other_codes_are_not_merged_and_of_the_same_are(tmp_path: Path) -> None:
    cache = coded_cache(tmp_path / "one")
    other = fit_codec(Moments.of(ROWS), [ROWS], grid=(4, 3), num_bytes=20)
    rival = coded_cache(tmp_path / "two", other)
    with pytest.raises(CacheMismatch, match=r"teacher a: the codec of patches is '\w+ \(18 bytes"):
        merge(cache, rival)
    same = coded_cache(tmp_path / "three")
    digest = cache.digest()
    cache.forget_shard("a", 1)
    assert merge(cache, same) == 1
    assert cache.digest() == digest


def test_coded_and_float_caches_of_a_teacher_are_read_as_one(tmp_path: Path) -> None:
    coded = coded_cache(tmp_path / "coded")
    plain = empty_cache(tmp_path / "plain", [TEACHER], num_rows=NUM_ROWS, shard_rows=16)
    for shard in plain.info.shards():
        commit(plain, shard)
    joined = JoinedCaches([plain, coded])
    joined.require_alike(["a"])
    reader = joined.reader("a", "patches")
    rows = np.array([NUM_ROWS + 3, 2, 1, NUM_ROWS])
    expected = np.stack([CODEC.decode(CODEC.encode(ROWS[3:4]))[0], ROWS[2], ROWS[1], ROWS[0]])
    expected[3] = CODEC.decode(CODEC.encode(ROWS[:1]))[0]
    assert reader.dtype == np.float32
    np.testing.assert_array_equal(reader.read(rows), expected)
    np.testing.assert_array_equal(reader.read(rows[1:3]), expected[1:3])
