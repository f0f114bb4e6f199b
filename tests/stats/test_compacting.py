"""The verb compact with bits: smaller, with the statistics of the features."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.stage import stage
from phistill.cache.upkeep.verify import discard, verify
from phistill.cli import main
from phistill.errors import CacheMismatch, LockHeld, MissingMoments, UsageError
from phistill.stats import METHODS, compact_cache, fit_stats, load_moments, load_normalizer
from phistill.stats.fit.reuse import reuse_statistics
from tests.stats.codes.conftest import features

CacheFactory = Callable[..., Cache]
NUM_ROWS = 200
TEACHERS = (
    TeacherInfo(name="a", grid=(4, 4), widths={"patches": 12, "summary": 6}),
    TeacherInfo(name="b", grid=(3, 3), widths={"patches": 8}),
)
ALL = {t.name: features(NUM_ROWS, t.grid, t.widths["patches"]) for t in TEACHERS}


def float_cache(make_cache: CacheFactory, **settings: Any) -> Cache:
    """A cache with statistics."""

    def values(name: str, kind: str, start: int, random: Any) -> Any:
        return ALL[name][start : start + len(random)] if kind == "patches" else random

    cache = make_cache(num_rows=NUM_ROWS, teachers=TEACHERS, features=values, **settings)
    fit_stats(cache)
    return cache


def same_statistics(one: Cache, other: Cache) -> bool:
    """Whether moments and every normalizer have the same bits."""
    return all(
        load_moments(one, name, kind).scatter.tobytes()
        == load_moments(other, name, kind).scatter.tobytes()
        and all(
            load_normalizer(one, name, kind, method).to_bytes()
            == load_normalizer(other, name, kind, method).to_bytes()
            for method in METHODS
        )
        for name in one.teachers
        for kind in one.teacher(name).kinds
    )


def test_statistics_stay_those_of_the_features_to_the_last_bit(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = float_cache(make_cache, rejects=[5])
    copy = compact_cache(cache, tmp_path / "out", bits=1).cache
    assert verify(copy).findings == ()
    assert same_statistics(cache, copy)
    files = {p: p.read_bytes() for p in (copy.path / "teachers").rglob("*.safetensors")}
    fit_stats(copy)
    assert files == {p: p.read_bytes() for p in (copy.path / "teachers").rglob("*.safetensors")}


def test_each_teacher_has_its_bits_and_others_stay_as_they_are(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = float_cache(make_cache)
    copy = compact_cache(cache, tmp_path / "out", bits={"a": 0.5}).cache
    assert copy.teacher("a").codecs["patches"].num_bytes in (10, 11, 12)
    rows = cache.rows(split="all")
    for kind, name in (("patches", "b"), ("summary", "a")):
        ours, theirs = (c.reader(name, kind).read(rows) for c in (copy, cache))
        np.testing.assert_array_equal(ours, theirs)
    decoded = copy.reader("a", "patches").read(rows)
    codec = copy.codec("a", "patches")
    assert codec is not None
    np.testing.assert_array_equal(decoded, codec.decode(codec.encode(ALL["a"][rows])))


def test_the_same_cache_gives_the_same_bytes_and_nothing_to_do_the_second_time(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = float_cache(make_cache)
    one = compact_cache(cache, tmp_path / "one", bits=2).cache
    two = compact_cache(cache, tmp_path / "two", bits=2).cache
    assert one.digest() == two.digest()
    assert compact_cache(cache, tmp_path / "one", bits=2).num_shards == 0
    with pytest.raises(CacheMismatch, match="teacher 'a' is stored in other codes"):
        compact_cache(cache, tmp_path / "one", bits=1)


def test_a_stopped_call_goes_on_and_a_damaged_shard_is_made_again(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = float_cache(make_cache)
    whole = compact_cache(cache, tmp_path / "whole", bits=2).cache

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact_cache(cache, tmp_path / "out", bits=2, workers=1, progress=stop)
    report = compact_cache(cache, tmp_path / "out", bits=2)
    assert 0 < report.num_shards < 3 * 13
    assert report.cache.digest() == whole.digest()
    path = report.cache.path / "teachers/a/patches-codes/c/1/0"
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(data)
    damaged = verify(report.cache)
    discard(report.cache, damaged)
    assert [finding.shard for finding in damaged.findings] == [1]
    assert compact_cache(cache, tmp_path / "out", bits=2).num_shards == 1
    assert store.open(tmp_path / "out").digest() == whole.digest()


def test_removed_images_leave_no_bytes_and_no_trace_in_what_codes_lose(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = float_cache(make_cache)
    with cache.writing():
        remove_images(cache, ["image-00003", "image-00120"])
    fit_stats(cache)
    hidden = compact_cache(cache, tmp_path / "hidden", bits=2).cache
    dropped = compact_cache(cache, tmp_path / "dropped", bits=2, drop_removed=True).cache
    for copy, length in ((hidden, NUM_ROWS), (dropped, NUM_ROWS - 2)):
        assert verify(copy).findings == ()
        assert copy.rows(split="all").size == NUM_ROWS - 2
        assert copy.info.num_real_rows == length
        assert same_statistics(cache, copy)
        assert copy.commits("a").lost("patches-codes").max() < 0.2
    codes = hidden.path / "teachers/a/patches-codes/c/0/0"
    num_bytes = hidden.teacher("a").codecs["patches"].num_bytes
    stored = np.frombuffer(codes.read_bytes(), np.uint8)[3 * (num_bytes + 4) :][:num_bytes]
    assert not stored.any(), "row 3 was taken down"


def test_a_staged_compact_cache_keeps_codes_and_statistics(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    copy = compact_cache(float_cache(make_cache), tmp_path / "out", bits=2).cache
    staged = stage(copy, tmp_path / "near", reuse=reuse_statistics).cache
    assert verify(staged).findings == ()
    assert staged.teacher("a") == copy.teacher("a")
    assert same_statistics(copy, staged)
    rows = staged.rows()
    np.testing.assert_array_equal(
        staged.reader("a", "patches").read(rows), copy.reader("a", "patches").read(rows)
    )


def test_shards_unlike_the_pilot_are_named(make_cache: CacheFactory, tmp_path: Path) -> None:
    noise = np.random.default_rng(5).normal(size=(16, 16, 12))  # no token is like its neighbour
    strange = (ALL["a"].mean(axis=(0, 1), dtype=np.float64) + 0.3 * noise).astype(np.float16)

    def values(name: str, kind: str, start: int, random: Any) -> Any:
        if kind != "patches":
            return random
        if name == "a" and start == 176:
            return strange
        return ALL[name][start : start + len(random)]

    cache = make_cache(num_rows=NUM_ROWS, teachers=TEACHERS, features=values)
    fit_stats(cache)
    with pytest.warns(UserWarning, match=r"a patches: 1 shard of 13 \(11\) lose up to"):
        compact_cache(cache, tmp_path / "out", bits={"a": 2})


def test_what_cannot_be_is_refused_in_one_line(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = make_cache(num_rows=NUM_ROWS, teachers=TEACHERS)
    with pytest.raises(MissingMoments, match="fit-stats"):
        compact_cache(cache, tmp_path / "out", bits=2)
    fit_stats(cache)
    for bits in (0.2, 9, {"a": 0.1}):
        with pytest.raises(UsageError, match=r"must lie between 0.25 and 8"):
            compact_cache(cache, tmp_path / "out", bits=bits)
    with pytest.raises(UsageError, match="no teacher 'c'"):
        compact_cache(cache, tmp_path / "out", bits={"c": 2})
    copy = compact_cache(cache, tmp_path / "out", bits={"a": 2}).cache
    with pytest.raises(
        UsageError, match=r"patches of a as codes already.* Of the others: --bits b=B"
    ):
        compact_cache(copy, tmp_path / "again", bits=1)


def test_a_place_and_a_lock_are_looked_at_before_codecs_are_fitted(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    """None can be here: there are no statistics."""
    cache, out = make_cache(num_rows=20, teachers=TEACHERS), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"other things \(thesis.tex"):
        compact_cache(cache, out, bits=2)
    with cache.writing(), pytest.raises(LockHeld, match="must not change while it is copied"):
        compact_cache(cache, tmp_path / "free", bits=2)
    with pytest.raises(MissingMoments):
        compact_cache(cache, tmp_path / "free", bits=2)
    assert not (tmp_path / "free").exists()


def test_the_command_says_bits_bytes_and_loss_and_inspect_too(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache, out = str(float_cache(make_cache).path), str(tmp_path / "out")

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(args))
        return result.exit_code, result.output

    code, text = run("compact", cache, out, "--bits", "a=2,b=1")
    assert code == 0, text
    assert re.search(r"a patches as codes: \S+ bits per channel, 4\d bytes a row, 1/8", text)
    code, text = run("inspect", out, "--json")
    codes = json.loads(text)["teachers"]["a"]["codes"]["patches"]
    assert (code, codes["shards_unlike_pilot"]) == (0, [])
    assert 44 <= codes["row_bytes"] <= 48
    assert 0 < codes["lost_mean"] <= codes["lost_most"] < 2 * codes["lost_pilot"]
    assert "as codes" not in run("inspect", cache)[1]
    assert "patches as codes" in run("inspect", out)[1]
    assert run("compact", cache, out, "--bits", "a=2,b=x")[0] == 2
    assert run("compact", cache, out)[0] == 2
