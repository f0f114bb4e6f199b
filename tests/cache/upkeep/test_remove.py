"""Images taken down and teachers forgotten leave nothing that is believed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.remove import remove_images, remove_teacher
from phistill.cache.upkeep.verify import verify
from phistill.errors import IncompleteCache, MissingRow, UsageError
from tests.conftest import facts, small_index

CacheFactory = Callable[..., Cache]
WIDER = TeacherInfo(name="a", grid=(1, 1), widths={"patches": 5})


def test_removed_images_are_never_given_out_again(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50)
    before = cache.rows(split="all")
    assert remove_images(cache, ["image-00007", "image-00008", "image-00030"]) == 3
    assert cache.info.removed == ((7, 9), (30, 31))
    reopened = Cache(cache.path)
    assert sorted(set(before) - set(reopened.rows(split="all"))) == [7, 8, 30]
    with pytest.raises(MissingRow, match=r"row 8 .* was removed"):
        reopened.reader("a", "patches").read(np.array([6, 8]))
    assert remove_images(reopened, ["image-00031"]) == 1
    assert Cache(cache.path).info.removed == ((7, 9), (30, 32))


def test_an_unknown_image_is_named(make_cache: CacheFactory) -> None:
    with pytest.raises(UsageError, match="no image 'x'"):
        remove_images(make_cache(), ["x", "image-00001"])


def test_a_removed_teacher_leaves_nothing_behind(make_cache: CacheFactory) -> None:
    cache = make_cache()
    remove_teacher(cache, "a")
    assert Cache(cache.path).teachers == ("b",)
    assert not [path for path in cache.path.rglob("*") if "/a/" in path.as_posix()]
    assert verify(Cache(cache.path)).findings == ()


def test_a_teacher_that_comes_again_has_no_shard(make_cache: CacheFactory) -> None:
    cache = make_cache()
    bystander = Cache(cache.path)
    for known in (cache, bystander):
        known.require_complete()  # every record is in memory now
        known.committed("a", 0)
    remove_teacher(cache, "a")
    cache.add_teacher(WIDER)
    for known in (cache, bystander, Cache(cache.path)):
        with pytest.raises(IncompleteCache, match="a has 0 of 4 shards"):
            known.require_complete(["a"])
        assert known.committed("a", 0) is None
        assert known.missing_shards("a") == [0, 1, 2, 3]
    cache.require_complete(["b"])


def test_records_that_a_stopped_removal_left_are_not_believed(make_cache: CacheFactory) -> None:
    cache = make_cache()
    left = {path: cache.files.read(path) for path in cache.files.walk() if "/a/" in path}
    remove_teacher(cache, "a")
    for path, data in left.items():  # as if it had been killed before it deleted anything
        cache.files.publish(path, [data])
    reopened = Cache(cache.path)
    reopened.add_teacher(WIDER)
    assert reopened.missing_shards("a") == [0, 1, 2, 3]
    assert not list((cache.path / "teachers/a").rglob("c/*"))


def test_records_beyond_the_last_row_are_not_those_of_rows_added_later(
    make_cache: CacheFactory,
) -> None:
    """A root of before an append was put back from a copy."""
    cache = make_cache(num_rows=16)
    root = (cache.path / "zarr.json").read_bytes()
    rows = np.arange(16, 32)
    later = small_index(16).set_column(0, "row", [rows])
    add_segment(cache, later.set_column(1, "id", [[f"new-{row}" for row in rows]]))
    arrays = {"patches": np.ones((16, 9, 7), np.float16)}
    cache.commit_shard("b", 1, arrays, images=facts(16, 16), reasons={}, environment={})
    (cache.path / "zarr.json").write_bytes(root)
    old = Cache(cache.path)
    add_segment(old, later.set_column(1, "id", [[f"other-{row}" for row in rows]]))
    assert old.missing_shards("b") == [1]


def test_a_reader_made_before_its_cache_grew_reads_what_came(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20)
    reader = cache.reader("b", "patches")
    before = reader.read(np.arange(20))
    index = small_index(8)
    start = cache.info.next_row
    added = index.set_column(0, "row", [np.arange(start, start + 8)])
    add_segment(cache, added.set_column(1, "id", [[f"new-{n}" for n in range(8)]]))
    with pytest.raises(MissingRow, match=f"row {start} .* is not committed"):
        reader.read(np.array([3, start]))
    values = np.arange(8 * 9 * 7, dtype=np.float16).reshape(8, 9, 7)
    shard = start // cache.info.shard_rows
    cache.commit_shard(
        "b", shard, {"patches": values}, images=facts(start, 8), reasons={}, environment={}
    )
    np.testing.assert_array_equal(reader.read(np.arange(start, start + 8)), values)
    np.testing.assert_array_equal(reader.read(np.arange(20)), before)
    remove_images(cache, ["new-1"])
    reader.refresh()
    with pytest.raises(MissingRow, match="was removed"):
        reader.read(np.array([start + 1]))
    with pytest.raises(MissingRow, match=f"the cache has {start + 8} rows"):
        reader.read(np.array([start + 8]))


def test_a_reader_sees_a_shard_that_was_written_anew(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=32)
    reader = cache.reader("b", "patches")
    reader.read(np.arange(32))
    cache.forget_shard("b", 0)
    values = np.full((16, 9, 7), 2, np.float16)
    cache.commit_shard("b", 0, {"patches": values}, images=facts(0, 16), reasons={}, environment={})
    reader.refresh()
    np.testing.assert_array_equal(reader.read(np.arange(16)), values)
