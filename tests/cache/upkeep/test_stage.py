"""A staged cache is the part of a cache that a run needs, byte for byte."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.pack import pack
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.stage import Selection, stage
from phistill.cache.upkeep.verify import verify
from phistill.errors import CacheMismatch, CorruptCache, IncompleteCache, LockHeld, UsageError
from phistill.stats import fit_stats, load_moments
from phistill.stats.fit.reuse import reuse_statistics
from tests.conftest import facts, random_features, rename_images, small_index

CacheFactory = Callable[..., Cache]


def contents(cache: Cache) -> dict[str, bytes]:
    return {path: cache.files.read(path) for path in cache.files.walk() if path != ".lock"}


@pytest.fixture
def source(make_cache: CacheFactory) -> Cache:
    """Four shards of two teachers, an image rejected and one taken down."""
    cache = make_cache(num_rows=60, rejects=[7], name="source.cache")
    remove_images(cache, ["image-00050"])
    return store.open(cache.path)


@pytest.fixture
def fitted(source: Cache) -> Cache:
    fit_stats(source)
    return source


def test_a_staged_cache_equals_the_whole(fitted: Cache, tmp_path: Path) -> None:
    report = stage(fitted, tmp_path / "dest", reuse=reuse_statistics)
    assert report.num_shards == 4 * 3
    assert report.cache.digest() == fitted.digest()
    again = stage(fitted, tmp_path / "dest", reuse=reuse_statistics)
    assert (again.num_shards, again.num_bytes, again.num_statistics) == (0, 0, 0)


def test_one_teacher_comes_with_its_shards_and_statistics_alone(
    fitted: Cache, tmp_path: Path
) -> None:
    pack(fitted)
    staged = stage(
        fitted, tmp_path / "dest", Selection(teachers=("b",)), reuse=reuse_statistics
    ).cache
    assert staged.teachers == ("b",)
    assert verify(staged).findings == ()
    whole = contents(fitted)
    for path, data in contents(staged).items():
        assert "/a/" not in path
        if path != "zarr.json":
            assert data == whole[path]
    assert load_moments(staged, "b", "patches").n == load_moments(fitted, "b", "patches").n
    both = stage(fitted, tmp_path / "dest", Selection(teachers=("a",)), reuse=reuse_statistics)
    assert both.num_shards == 4, "only the teacher that was missing is copied"
    assert both.cache.digest() == fitted.digest()


@pytest.mark.parametrize("num_rows", [1, 16, 20, 59, 1000])
def test_the_first_rows_come_alone(num_rows: int, source: Cache, tmp_path: Path) -> None:
    staged = stage(source, tmp_path / "dest", Selection(num_rows=num_rows)).cache
    assert verify(staged).findings == ()
    rows = source.rows(split="all")
    expected = rows[rows < num_rows]
    assert staged.rows(split="all").tolist() == expected.tolist()
    for owner, kind in [("pixels", "pixels"), ("a", "summary")]:
        np.testing.assert_array_equal(
            staged.reader(owner, kind).read(expected), source.reader(owner, kind).read(expected)
        )
    assert stage(source, tmp_path / "dest", Selection(num_rows=num_rows)).num_shards == 0


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_split_comes_alone(split: Any, source: Cache, tmp_path: Path) -> None:
    staged = stage(source, tmp_path / "dest", Selection(split=split)).cache
    assert verify(staged).findings == ()
    rows = source.rows(split=split)
    assert staged.rows(split=split).tolist() == staged.rows(split="all").tolist()
    assert staged.num_rows == rows.size
    np.testing.assert_array_equal(
        staged.reader("a", "patches").read(np.arange(rows.size)),
        source.reader("a", "patches").read(rows),
    )
    assert stage(source, tmp_path / "dest", Selection(split=split)).num_shards == 0


def test_max_bytes_takes_whole_shards_that_fit(source: Cache, tmp_path: Path) -> None:
    shard = sum(
        size for owner in source.owners for size, _ in source.commits(owner)[0].files.values()
    )
    for limit, rows in ((3 * shard, 48), (3 * shard - 1, 32), (shard, 16)):
        dest = tmp_path / str(limit)
        staged = stage(source, dest, Selection(max_bytes=limit)).cache
        assert staged.num_rows == rows
        shards = sum(p.stat().st_size for p in dest.rglob("c/**/*") if p.is_file())
        assert shards <= limit
    few = stage(source, tmp_path / "few", Selection(max_bytes=shard // 2)).cache
    assert 0 < few.num_rows < 16
    with pytest.raises(UsageError, match="does not hold one row"):
        stage(source, tmp_path / "none", Selection(max_bytes=100))


def test_a_cache_that_grew_is_staged_again_by_what_is_new(source: Cache, tmp_path: Path) -> None:
    stage(source, tmp_path / "dest")
    index = small_index(10)
    names = pa.array([f"new-{row}" for row in range(10)])
    rows = pa.array(np.arange(64, 74))
    add_segment(source, index.set_column(1, "id", names).set_column(0, "row", rows))
    generator = np.random.default_rng(0)
    common: dict[str, Any] = {"images": facts(64, 10), "reasons": {}, "environment": {}}
    pixels = np.zeros((10, 8, 8, 3), np.uint8)
    source.commit_shard("pixels", 4, {"pixels": pixels}, **common)
    for name in source.teachers:
        arrays = random_features(generator, source.teacher(name), 10)
        source.commit_shard(name, 4, arrays, **common)
    remove_images(source, ["image-00002"])
    assert stage(source, tmp_path / "dest").num_shards == 3
    assert store.open(tmp_path / "dest").digest() == source.digest()


def test_a_stopped_stage_is_no_cache_yet_and_goes_on(source: Cache, tmp_path: Path) -> None:
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(source, tmp_path / "dest", workers=1, progress=stop)
    assert not store.exists(tmp_path / "dest")
    assert 0 < stage(source, tmp_path / "dest").num_shards <= 7
    assert store.open(tmp_path / "dest").digest() == source.digest()


def test_a_file_that_was_cut_is_copied_again(source: Cache, tmp_path: Path) -> None:
    dest = stage(source, tmp_path / "dest").cache.path
    shard = dest / "teachers/a/patches/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert stage(source, dest).num_shards == 1
    assert store.open(dest).digest() == source.digest()


def test_a_damaged_source_is_named_and_nothing_of_it_is_believed(
    source: Cache, tmp_path: Path
) -> None:
    path = source.path / "pixels/c/2/0/0/0"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCache, match="pixels/c/2/0/0/0 is not the file"):
        stage(source, tmp_path / "dest")
    assert not store.exists(tmp_path / "dest")
    assert not (tmp_path / "dest/commits/pixels/000002.json").exists()


def test_a_place_that_holds_something_else_is_refused(
    source: Cache, make_cache: CacheFactory, tmp_path: Path
) -> None:
    other = make_cache(num_rows=60, seed=5, name="other.cache")
    with pytest.raises(CacheMismatch, match="seed is 5 there, 0 here"):
        stage(source, other.path)
    teachers = (TeacherInfo(name="a", grid=(2, 2), widths={"patches": 12, "summary": 6}),)
    same_name = make_cache(num_rows=60, teachers=teachers, name="less.cache")
    with pytest.raises(CacheMismatch, match="teacher 'b' is not in the latter"):
        stage(same_name, source.path)
    stage(source, tmp_path / "few", Selection(num_rows=20))
    with pytest.raises(CacheMismatch, match="holds 20 rows, and 60, or others, are asked"):
        stage(source, tmp_path / "few")
    for number, chosen in enumerate(
        (Selection(), Selection(num_rows=20), Selection(split="train"))
    ):
        rival = make_cache(num_rows=60, name=f"rival-{number}.cache")
        rename_images(rival)
        before = stage(rival, tmp_path / f"rivals-{number}", chosen).cache.digest()
        same = make_cache(num_rows=60, name=f"same-{number}.cache")
        with pytest.raises(CacheMismatch, match="'other-image-00000' is there in the place of"):
            stage(same, tmp_path / f"rivals-{number}", chosen)
        assert store.open(tmp_path / f"rivals-{number}").digest() == before
    with pytest.raises(UsageError, match="is the cache itself"):
        stage(source, source.path)
    with pytest.raises(UsageError, match="lies inside"):
        stage(source, source.path / "teachers" / "copy")
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"other things \(thesis.tex"):
        stage(source, tmp_path / "things")
    assert [path.name for path in (tmp_path / "things").iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="no teacher 'c'"):
        stage(source, tmp_path / "dest", Selection(teachers=("c",)))
    source.forget_shard("b", 0)
    with pytest.raises(IncompleteCache, match="b has 3 of 4"):
        stage(source, tmp_path / "dest")
    assert stage(source, tmp_path / "dest", Selection(teachers=("a",))).num_shards == 8


def test_of_two_that_stage_one_waits_for_the_other(source: Cache, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    begun, go_on = threading.Event(), threading.Event()

    def hold(done: int, total: int) -> None:
        begun.set()
        go_on.wait(30)

    first = threading.Thread(target=stage, args=(source, dest), kwargs={"progress": hold})
    first.start()
    assert begun.wait(30)
    with pytest.raises(LockHeld):
        stage(source, dest)
    waiter: list[int] = []
    second = threading.Thread(
        target=lambda: waiter.append(stage(source, dest, wait=True).num_shards)
    )
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert waiter == [0]


def test_a_cache_on_an_object_store_is_staged_and_copied_back(
    source: Cache, bucket_url: str, tmp_path: Path
) -> None:
    remote = stage(source, bucket_url)
    assert remote.num_shards == 12
    assert remote.cache.digest() == source.digest()
    assert stage(source, bucket_url).num_shards == 0
    near = stage(store.open(bucket_url), tmp_path / "near").cache
    assert near.digest() == source.digest()
    clean = compact(store.open(bucket_url), f"{bucket_url}-clean", drop_removed=True).cache
    assert verify(clean).findings == ()
    assert (
        clean.digest() == compact(source, str(tmp_path / "clean"), drop_removed=True).cache.digest()
    )


KILLED = """
import os, signal, sys
import phistill.cache as store
from phistill.cache.upkeep.stage import stage

source, dest, after = sys.argv[1:]
shards = []

def kill(done, total):
    shards.append(done)
    if len(shards) == int(after):
        os.kill(os.getpid(), signal.SIGKILL)

stage(store.open(source), dest, progress=kill)
"""


def test_a_killed_stage_is_no_cache_and_ends_in_the_same_bytes(
    source: Cache, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    for after in (1, 4):
        command = [sys.executable, "-c", KILLED, str(source.path), str(dest), str(after)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not store.exists(dest)
    assert stage(source, dest).num_shards <= 12 - 5
    assert store.open(dest).digest() == source.digest()
    assert not [path for path in dest.rglob("*") if path.name.endswith(".partial")]
