"""Caches become one without a shard being written twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.stage import stage
from phistill.cache.upkeep.verify import verify
from phistill.errors import CacheMismatch, CorruptCache, MissingRow, UsageError
from tests.conftest import facts_with_hash, small_index

CacheFactory = Callable[..., Cache]


def test_who_opened_a_cache_before_it_grew_goes_on_reading_it(make_cache: CacheFactory) -> None:
    old = make_cache(num_rows=20)
    reader, rows = old.reader("a", "patches"), old.rows(split="all").tolist()
    second = make_cache(num_rows=40, name="other.cache")
    ids = pa.array([f"other-{row}" for row in range(40)])
    merge(store.open(old.path), _with_index(second, second.index().set_column(1, "id", ids)))
    assert old.rows(split="all").tolist() == rows
    reader.refresh()
    assert len(reader.read(np.arange(20))) == 20
    assert old.reader("a", "summary").read(np.array([3])).shape == (1, 6)
    assert store.open(old.path).num_rows == 72


def test_copies_filled_by_disjoint_workers_merge_to_the_whole(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    whole = make_cache(num_rows=60)
    parts = [tmp_path / "even", tmp_path / "odd"]
    for number, part in enumerate(parts):
        shutil.copytree(whole.path, part)
        for owner in whole.owners:
            for shard in range(4):
                if shard % 2 != number:
                    Cache(part).forget_shard(owner, shard)
    assert merge(Cache(parts[0]), Cache(parts[1])) == 2 * 3
    assert Cache(parts[0]).digest() == whole.digest()


def test_caches_of_other_images_merge_as_further_segments(make_cache: CacheFactory) -> None:
    first, second = make_cache(num_rows=20), make_cache(num_rows=40, name="other.cache")
    index = second.index()
    ids = pa.array([f"other-{row}" for row in range(40)])
    renamed = _with_index(second, index.set_column(1, "id", ids))
    assert merge(first, renamed) == 3 * 3
    merged = Cache(first.path)
    assert verify(merged).findings == ()
    rows = merged.rows(split="all")
    assert rows.tolist() == [*range(20), *range(32, 72)]
    assert merged.index()["id"].to_pylist()[20:] == ids.to_pylist()
    for owner, kind in [("a", "patches"), ("b", "patches"), ("pixels", "pixels")]:
        np.testing.assert_array_equal(
            merged.reader(owner, kind).read(np.arange(32, 72)),
            renamed.reader(owner, kind).read(np.arange(40)),
        )


def _with_index(cache: Cache, index: pa.Table) -> Cache:
    """The same cache with other ids, as another extraction would have made it."""
    from phistill.cache.segments import publish_index

    segment = publish_index(cache.files, index, number=0, start=0, shard_rows=cache.info.shard_rows)
    cache.publish_root(replace(cache.info, segments=(segment,)))
    return Cache(cache.path)


def test_caches_with_common_images_or_other_settings_are_refused(make_cache: CacheFactory) -> None:
    first = make_cache(num_rows=20)
    with pytest.raises(CacheMismatch, match="both hold image 'image-00000'"):
        merge(first, make_cache(num_rows=40, name="b"))
    with pytest.raises(CacheMismatch, match="seed=3"):
        merge(first, make_cache(num_rows=20, seed=3, name="c"))


def _renamed(cache: Cache) -> Cache:
    ids = pa.array([f"other-{row}" for row in range(cache.info.num_rows)])
    return _with_index(cache, cache.index().set_column(1, "id", ids))


def test_a_merge_that_was_stopped_goes_on_and_a_finished_one_does_nothing(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    first, second = make_cache(num_rows=20), _renamed(make_cache(num_rows=40, name="other.cache"))
    whole = store.open(shutil.copytree(first.path, tmp_path / "whole"))
    assert merge(whole, second) == 3 * 3
    damaged = second.path / "teachers/b/patches/c/1/0/0"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptCache, match="is not the file that was committed"):
        merge(first, second)
    damaged.write_bytes(content)
    assert merge(store.open(first.path), second) > 0
    assert store.open(first.path).digest() == whole.digest()
    assert merge(store.open(first.path), second) == 0
    assert store.open(first.path).digest() == whole.digest()


def test_what_was_taken_down_in_a_merged_cache_stays_down(make_cache: CacheFactory) -> None:
    first, second = make_cache(num_rows=20), _renamed(make_cache(num_rows=40, name="other.cache"))
    remove_images(second, ["other-3", "other-39"])
    merge(first, second)
    assert Cache(first.path).info.removed == ((35, 36), (71, 72))
    with pytest.raises(MissingRow, match="was removed"):
        Cache(first.path).reader("a", "patches").read(np.array([35]))


def test_images_of_the_same_names_with_other_bytes_are_no_earlier_merge(
    make_cache: CacheFactory,
) -> None:
    first, second = make_cache(num_rows=20), make_cache(num_rows=20, name="other.cache")
    images = second.facts_of(0)
    assert images is not None
    changed = facts_with_hash(images, 0, "0" * 64)
    (second.path / "facts/000000.bin").write_bytes(changed.to_bytes())
    for owner in second.owners:
        record = replace(second.commits(owner)[0], facts=changed.digest)
        (second.path / f"commits/{owner}/000000.json").write_bytes(record.to_bytes())
    with pytest.raises(CacheMismatch, match="image image-00000"):
        merge(first, Cache(second.path))


def test_shards_without_a_root_are_not_taken_for_those_of_a_new_cache(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=20)
    (cache.path / "zarr.json").unlink()
    with pytest.raises(UsageError, match=r"but no zarr.json: it was lost"):
        store.create(cache.path, cache.info, small_index(20))
    with pytest.raises(UsageError, match=r"whose zarr.json was lost"):
        stage(make_cache(num_rows=20, name="b"), cache.path)
    assert (cache.path / "commits/a/000000.json").exists()


def test_a_teacher_with_every_kind_is_copied_and_merged(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    widths = {"patches": 4, "summary": 6, "registers": 4}
    teacher = TeacherInfo(name="t", grid=(2, 2), widths=widths, num_registers=3)
    first, second = (make_cache(num_rows=20, name=n, teachers=(teacher,)) for n in ("a", "b"))
    merge(first, _renamed(second))
    assert verify(Cache(first.path)).findings == ()
    assert verify(stage(first, tmp_path / "copy").cache).findings == ()


def test_a_licence_that_one_side_knows_holds_for_the_whole(make_cache: CacheFactory) -> None:
    def teachers(licence: str) -> tuple[TeacherInfo, ...]:
        return (TeacherInfo(name="t", grid=(1, 1), widths={"patches": 2}, licence=licence),)

    def pair(name: str, ours: str, theirs: str) -> tuple[Cache, Cache]:
        first = make_cache(name=f"{name}-1", num_rows=8, teachers=teachers(ours))
        second = make_cache(name=f"{name}-2", num_rows=8, teachers=teachers(theirs))
        return first, _renamed(second)

    for name, ours, theirs in (("a", "mit", ""), ("b", "", "mit"), ("c", "mit", "mit")):
        first, second = pair(name, ours, theirs)
        assert merge(first, second) > 0
        assert store.open(first.path).teacher("t").licence == "mit"
        assert verify(store.open(first.path)).findings == ()
    first, second = pair("d", "mit", "cc-by-nc-4.0")
    with pytest.raises(CacheMismatch, match="licence is 'cc-by-nc"):
        merge(first, second)
