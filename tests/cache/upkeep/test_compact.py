"""A compacted cache holds every row that was left, and no byte of those that were taken down."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts
from phistill.cache.storage.publish import PublishError
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.place import MARK
from phistill.cache.upkeep.remove import duplicates, remove_images
from phistill.cache.upkeep.verify import verify
from phistill.errors import CacheMismatch, CorruptCache, IncompleteCache, LockHeld, UsageError
from tests.conftest import rename_images, small_index

CacheFactory = Callable[..., Cache]

ARRAYS = [("pixels", "pixels"), ("a", "patches"), ("a", "summary"), ("b", "patches")]


def without(cache: Cache, rows: list[int]) -> Cache:
    """The cache with these rows' images taken down."""
    remove_images(cache, [f"image-{row:05d}" for row in rows])
    return cache


def by_id(cache: Cache, owner: str, kind: str) -> dict[str, Any]:
    """Accepted values by image id."""
    rows = cache.rows(split="all")
    index = cache.index()
    names = dict(zip(index["row"].to_pylist(), index["id"].to_pylist(), strict=True))
    values = cache.reader(owner, kind).read(rows)
    return {names[row]: value for row, value in zip(rows.tolist(), values, strict=True)}


REMOVED = {
    "in one shard": [20, 21],
    "at the ends": [0, 59],
    "in every shard": [1, 17, 40, 58],
    "a whole shard": list(range(16, 32)),
    "the last shard": list(range(48, 60)),
}


@pytest.mark.parametrize("compression", ["", "zstd:1"])
@pytest.mark.parametrize("max_segments", [256, 1])
@pytest.mark.parametrize("rows", REMOVED.values(), ids=REMOVED.keys())
def test_what_is_left_is_equal_and_what_was_removed_is_nowhere(
    rows: list[int],
    max_segments: int,
    compression: str,
    make_cache: CacheFactory,
    tmp_path: Path,
) -> None:
    cache = make_cache(num_rows=60, rejects=[5, 22, 57], compression=compression)
    split = {name: set(by_split(cache, name)) for name in ("train", "heldout")}
    wanted = [by_id(without(cache, rows), owner, kind) for owner, kind in ARRAYS]
    copy = compact(cache, str(tmp_path / "out"), max_segments=max_segments, drop_removed=True).cache
    assert verify(store.open(copy.path)).findings == ()
    for (owner, kind), values in zip(ARRAYS, wanted, strict=True):
        found = by_id(copy, owner, kind)
        assert found.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(found[name], value)
    gone = {f"image-{row:05d}" for row in rows}
    assert not gone & set(copy.index()["id"].to_pylist())
    for name, ids in split.items():
        assert set(by_split(copy, name)) == ids - gone, "the split does not move"
    assert copy.info.removed == ()
    assert reasons(copy) == reasons(cache) - gone
    shards = (60 + 15) // 16
    assert len(copy.info.segments) <= (1 if max_segments == 1 else shards)


def by_split(cache: Cache, split: Any) -> list[str]:
    rows = cache.rows(split=split)
    index = cache.index()
    lines = np.searchsorted(index["row"].to_numpy(), rows)
    return [index["id"][line].as_py() for line in lines.tolist()]


def reasons(cache: Cache) -> set[str]:
    index = cache.index()
    names = dict(zip(index["row"].to_pylist(), index["id"].to_pylist(), strict=True))
    return {
        names[record.start + slot]
        for record in cache.commits("a").values()
        for slot in record.reasons
    }


def test_the_bytes_of_a_removed_image_are_in_no_file(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=60)
    needles = [cache.reader(*array).read(np.array([20])).tobytes() for array in ARRAYS]
    needles += [b"image-00020", cache.facts().sha256[20].tobytes()]
    without(cache, [20])

    def holds(root: Path, needle: bytes) -> bool:
        files = (path for path in root.rglob("*") if path.is_file())
        return any(needle in path.read_bytes() for path in files)

    copy = compact(cache, str(tmp_path / "out"), drop_removed=True).cache
    for needle in needles:
        if needle != b"image-00020":  # the index is compressed
            assert holds(cache.path, needle)
        assert not holds(copy.path, needle)


def test_shards_that_lost_nothing_keep_number_and_bytes(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = without(make_cache(num_rows=60), [20])
    copy = compact(cache, str(tmp_path / "out"), drop_removed=True).cache
    for owner in cache.owners:
        for shard in (0, 2, 3):
            assert copy.commits(owner)[shard] == cache.commits(owner)[shard]
        assert copy.commits(owner)[1].num_rows == 15


def test_rows_can_be_added_after_it(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = without(make_cache(num_rows=60), [*range(16, 32), 58])
    copy = compact(cache, str(tmp_path / "out"), drop_removed=True).cache
    assert copy.info.next_row == 64
    again = without(copy, [0])
    once_more = compact(again, str(tmp_path / "again"), drop_removed=True).cache
    assert verify(once_more).findings == ()
    assert once_more.rows(split="all").size == 60 - 18


def stop_after(shards: int) -> Callable[[int, int], None]:
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == shards:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_copy_is_no_cache_yet_and_goes_on(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = without(make_cache(num_rows=60), [20, 40])
    whole = compact(cache, str(tmp_path / "whole"), drop_removed=True).cache
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compact(cache, str(out), workers=1, progress=stop_after(5), drop_removed=True)
    assert not store.exists(out)
    report = compact(cache, str(out), drop_removed=True)
    assert 0 < report.num_shards <= 12 - 5
    assert report.cache.digest() == whole.digest()
    assert not (out / MARK).exists()
    assert compact(cache, str(out), drop_removed=True).num_shards == 0


def test_what_a_stopped_copy_of_another_state_left_is_not_believed(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = without(make_cache(num_rows=60), [20])
    other = without(make_cache(num_rows=60, seed=0, name="other.cache", features=doubled), [20])
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        compact(other, out, workers=1, progress=stop_after(9), drop_removed=True)
    without(cache, [21])
    copy = compact(cache, out, drop_removed=True).cache
    assert (
        copy.digest() == compact(cache, str(tmp_path / "whole"), drop_removed=True).cache.digest()
    )


def doubled(owner: str, kind: str, start: int, values: Any) -> Any:
    return values * 2


def test_a_damaged_shard_stops_the_copy_by_name(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = without(make_cache(num_rows=60), [20])
    path = cache.path / "teachers/b/patches/c/2/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCache, match=r"teachers/b/patches/c/2/0/0 is not the file"):
        compact(cache, str(tmp_path / "out"), drop_removed=True)
    assert not store.exists(tmp_path / "out")


def test_what_cannot_be_compacted_is_refused(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = make_cache(num_rows=60)
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="no removed rows"):
        compact(cache, out, drop_removed=True)
    without(cache, [1])
    with pytest.raises(UsageError, match="is the cache itself"):
        compact(cache, str(cache.path), drop_removed=True)
    with pytest.raises(UsageError, match="another cache already"):
        compact(cache, str(make_cache(name="other").path), drop_removed=True)
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"other things \(thesis.tex"):
        compact(cache, str(tmp_path / "things"), drop_removed=True)
    with pytest.raises(UsageError, match="is a file"):
        compact(cache, str(tmp_path / "things" / "thesis.tex"), drop_removed=True)
    holder = rf"process {os.getpid()} on \S+ holds it, .* for another copy\. Wait for it"
    with cache.writing(), pytest.raises(LockHeld, match=holder):
        compact(cache, out, drop_removed=True)
    cache.forget_shard("b", 3)
    with pytest.raises(IncompleteCache, match="3 of 4 shards"):
        compact(store.open(cache.path), out, drop_removed=True)
    everything = without(make_cache(name="all", num_rows=3), [0, 1, 2])
    with pytest.raises(UsageError, match="every image"):
        compact(everything, out, drop_removed=True)


def test_a_copy_of_other_images_is_not_taken_for_ones_own(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    rival = without(make_cache(name="rival.cache"), [1])
    rename_images(rival)
    before = compact(rival, out, drop_removed=True).cache.digest()
    cache = without(make_cache(), [1])
    with pytest.raises(CacheMismatch, match="'other-image-00000' is there in the place of 'image-"):
        compact(cache, out, drop_removed=True)
    assert store.open(out).digest() == before
    assert compact(rival, out, drop_removed=True).num_shards == 0


def test_a_disk_that_is_too_small_is_found_before_a_byte_is_copied(
    make_cache: CacheFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    cache = without(make_cache(num_rows=60), [20])
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PublishError, match=r"needs [\d,]+ bytes more, and 1,000 are free"):
        compact(cache, str(tmp_path / "out"), drop_removed=True)
    assert not list((tmp_path / "out").glob("pixels/c/*"))


def test_duplicates_of_an_image_are_named(tmp_path: Path) -> None:
    hashes = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(20)]
    hashes[18] = hashes[19] = hashes[3]
    info = CacheInfo(
        seed=0, shard_rows=16, holdout=0.0, pixel_size=2, views=({"kind": "resize"},), decode={}
    )
    cache = store.create(tmp_path / "twins.cache", info, small_index(20))
    for shard in (0, 1):
        start, stop = cache.info.shard_range(shard)
        num = stop - start
        facts = ImageFacts.of(
            sha256=tuple(hashes[start:stop]), size=((2, 2),) * num, box=((0, 0, 2, 2),) * num
        )
        pixels = {"pixels": np.zeros((num, 2, 2, 3), np.uint8)}
        cache.commit_shard("pixels", shard, pixels, images=facts, reasons={}, environment={})
    assert duplicates(cache, ["image-00003"]) == {
        "image-00018": "image-00003",
        "image-00019": "image-00003",
    }
    assert duplicates(cache, ["image-00005"]) == {}
    remove_images(cache, ["image-00018"])
    assert duplicates(cache, ["image-00003"]) == {"image-00019": "image-00003"}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a folder read-only")
def test_a_cache_that_may_only_be_read_is_compacted(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    remove_images(cache, ["image-00003"])
    program = f"""
import subprocess
subprocess.run(["mount", "--bind", {str(cache.path)!r}, {str(cache.path)!r}], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", {str(cache.path)!r}], check=True)
import phistill.cache
from phistill.cache.upkeep.compact import compact
cache = phistill.cache.open({str(cache.path)!r})
report = compact(cache, {str(tmp_path / "out")!r}, drop_removed=True)
assert report.num_shards == 12, report
"""
    command = ["unshare", "--mount", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this system lets nobody mount anything")
    assert done.returncode == 0, done.stderr
