"""Packed or not, a cache says the same; whatever of a pack is damaged is found and mended."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.committed.packs import whole_records
from phistill.cache.format.columns import Columns
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.pack import PackReport, pack, pack_what_is_free
from phistill.cache.upkeep.remove import remove_images, remove_teacher
from phistill.cache.upkeep.stage import Selection, stage
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CorruptCache
from tests.conftest import FULL, CacheFactory, facts, small_index, write_missing

FLIPS = 2000 if FULL else 60
OWNERS = ("pixels", "a", "b")


def packed(cache: Cache) -> Cache:
    pack(cache)
    return Cache(cache.path)


def said(cache: Cache) -> dict[str, Any]:
    """All that a cache says of its shards and rows."""
    known = cache.facts()
    return {
        "records": {owner: dict(cache.commits(owner)) for owner in cache.owners},
        "rows": {split: cache.rows(split=split).tolist() for split in ("all", "train", "heldout")},
        "images": [known.sha256.tolist(), known.has_sha256.tolist()],
        "facts": {shard: cache.facts_of(shard).to_bytes() for shard in cache.info.shards()},  # type: ignore[union-attr]
        "reasons": {owner: list(cache.commits(owner).reasons()) for owner in cache.owners},
        "bytes": {owner: cache.commits(owner).shard_bytes.tolist() for owner in cache.owners},
        "digests": {owner: cache.commits(owner).digests.tolist() for owner in cache.owners},
        "digest": cache.digest(),
    }


def single_files(cache: Cache) -> list[str]:
    return [p for p in cache.files.walk() if p.startswith(("facts/", "commits/"))]


def test_a_packed_cache_says_what_it_said_before(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=100, rejects=(3, 17, 18, 99))
    before = said(cache)
    assert pack(cache) == PackReport(4, 4 * 7)
    assert single_files(cache) == []
    assert said(cache) == said(Cache(cache.path)) == before
    report = verify(Cache(cache.path))
    assert (report.findings, report.num_files) == ((), 7 * 4)
    assert pack(cache) == PackReport(0, 0)


def test_a_pack_is_small_and_any_reader_of_safetensors_reads_it(make_cache: CacheFactory) -> None:
    cache = packed(make_cache(num_rows=1024, shard_rows=16, rejects=(3, 700)))
    columns = load_file(cache.path / "packs/commits/a/000000.safetensors")
    assert columns["shards"].tolist() == list(range(64))
    assert columns["num_rejects"].sum() == 2
    sizes = [cache.files.size(p) or 0 for p in cache.files.walk() if p.startswith("packs/")]
    assert sum(sizes) < 1024 * 57 + 3 * 64 * 200 + 64 * 50 + 4 * 2000


def test_a_range_is_packed_when_it_is_finished(make_cache: CacheFactory) -> None:
    cache = make_cache()
    cache.forget_shard("a", 2)
    assert pack(cache) == PackReport(3, 3 * 4)
    assert single_files(cache) == [f"commits/a/00000{n}.json" for n in (0, 1, 3)]
    assert pack(cache, everything=True) == PackReport(1, 3)
    cache = Cache(cache.path)
    assert (single_files(cache), cache.missing_shards("a")) == ([], [2])


def test_shards_beyond_a_pack_get_one_of_their_own(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phistill.cache.format.info.MAX_PACK_SHARDS", 4)
    cache = make_cache(num_rows=150)
    before = said(cache)
    cache.forget_shard("b", 5)
    pack(cache)
    names = [p for p in cache.files.walk() if p.startswith("packs/")]
    ranges: dict[str, tuple[int, ...]] = {
        "facts": (0, 1, 2),
        "commits/pixels": (0, 1, 2),
        "commits/a": (0, 1, 2),
    }
    ranges["commits/b"] = (0, 2)
    expected = [f"packs/{f}/{n:06d}.safetensors" for f, all_n in ranges.items() for n in all_n]
    assert names == sorted(expected)
    write_missing(cache, make_cache(num_rows=150, name="model"))
    pack(cache)
    assert said(Cache(cache.path)) == before


def test_a_shard_that_was_taken_back_is_missing_and_a_new_commit_counts(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    model = Cache(shutil.copytree(cache.path, tmp_path / "model"))
    whole = said(cache)
    bystander = packed(cache)
    assert bystander.committed("a", 1) is not None
    cache.forget_shard("a", 1)
    for known in (cache, bystander, Cache(cache.path)):
        assert known.missing_shards("a") == [1]
        assert known.committed("a", 1) is None
        assert known.rows(split="all").size == 50 - 16
    write_missing(cache, model)
    assert said(Cache(cache.path)) == whole, "the single file stands beside the pack"
    start, stop = 16, 32
    arrays = {"patches": np.zeros((16, 9, 7), np.float16)}
    images = facts(start, stop - start)
    again = cache.commit_shard("b", 1, arrays, images=images, reasons={2: "x"}, environment={})
    for known in (cache, bystander, Cache(cache.path)):
        assert known.commits("b")[1] == known.committed("b", 1) == again, "before the packed one"
        assert 18 not in known.rows(split="all")
    assert pack(cache).num_packs == 2
    assert Cache(cache.path).commits("b")[1] == again


def test_a_cache_that_is_packed_in_part_is_changed_and_copied_like_one_that_is_not(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    single = make_cache(num_rows=100, rejects=(3, 99))
    partly = packed(Cache(shutil.copytree(single.path, tmp_path / "partly")))
    partly.forget_shard("a", 2)
    for owner in partly.owners:
        partly.forget_shard(owner, 4)
    partly.forget_facts([4])
    write_missing(partly, single)
    assert len(single_files(partly)) == 1 + 3 + 1

    def changed(cache: Cache) -> list[object]:
        found: list[object] = [remove_images(cache, ["image-00020", "image-00035", "image-00070"])]
        small = compact(cache, cache.path.with_suffix(".small"), drop_removed=True).cache
        part = stage(cache, cache.path.with_suffix(".part"), Selection(num_rows=70)).cache
        more = small_index(16).set_column(0, "row", [np.arange(112, 128)])
        add_segment(cache, more.set_column(1, "id", [[f"new-{row}" for row in range(16)]]))
        for owner in cache.owners:
            cache.forget_shard(owner, 1)
        cache.forget_facts([1])
        copies = [verify(copy).findings for copy in (small, part)]
        return [*found, small.digest(), part.digest(), copies, said_so_far(Cache(cache.path))]

    assert changed(partly) == changed(single)


def said_so_far(cache: Cache) -> list[object]:
    """What a cache that misses shards says of the others."""
    missing = [cache.missing_shards(owner) for owner in cache.owners]
    findings = [(finding.owner, finding.shard) for finding in verify(cache).findings]
    return [missing, findings, cache.rows(split="all").tolist(), cache.digest()]


def test_a_removed_teacher_is_in_no_pack(make_cache: CacheFactory) -> None:
    cache = packed(make_cache())
    info = cache.teacher("a")
    remove_teacher(cache, "a")
    assert not [path for path in cache.files.walk() if "/a/" in path]
    cache.add_teacher(info)
    assert cache.missing_shards("a") == [0, 1, 2, 3]


def test_packs_of_a_later_root_are_not_believed_by_rows_that_come_now(
    make_cache: CacheFactory,
) -> None:
    """The root was put back to one without the last segment."""
    cache = make_cache(num_rows=32)
    root = (cache.path / "zarr.json").read_bytes()

    def further(word: str) -> None:
        index = small_index(16).set_column(0, "row", [np.arange(32, 48)])
        ids = [f"{word}-{row}" for row in range(16)]
        add_segment(cache, index.set_column(1, "id", [ids]))

    further("old")
    images = facts(100, 16)
    pixels = {"pixels": np.zeros((16, 8, 8, 3), np.uint8)}
    cache.commit_shard("pixels", 2, pixels, images=images, reasons={}, environment={})
    pack(cache)
    (cache.path / "zarr.json").write_bytes(root)
    cache = Cache(cache.path)
    assert [finding for finding in verify(cache).findings if finding.shard is not None] == []
    assert cache.rows(split="all").tolist() == list(range(32))
    further("new")
    assert cache.missing_shards("pixels") == [2]
    assert cache.facts_of(2) is None


def test_what_nobody_writes_is_packed(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phistill.cache.format.info.MAX_PACK_SHARDS", 2)
    cache = make_cache(num_rows=64)
    with Cache(cache.path).writing([3]):
        assert pack_what_is_free(cache).num_packs == 4
    assert pack_what_is_free(cache).num_packs == 4
    assert single_files(cache) == []


def flip(path: Path, position: int, bit: int) -> bytes:
    good = path.read_bytes()
    bad = bytearray(good)
    bad[position] ^= 1 << bit
    path.write_bytes(bad)
    return good


def every_word(cache: Cache) -> None:
    """Ordinary reading of all that packs say."""
    said(cache)


@pytest.mark.parametrize("name", ["facts", *(f"commits/{owner}" for owner in OWNERS)])
def test_a_flipped_byte_of_a_pack_is_found_and_never_believed(
    name: str, make_cache: CacheFactory, record_property: Callable[[str, object], None]
) -> None:
    cache = packed(make_cache(rejects=(3, 17)))
    path = cache.path / f"packs/{name}/000000.safetensors"
    generator = np.random.default_rng(0)
    size = path.stat().st_size
    for position in generator.choice(size, min(FLIPS, size), replace=False).tolist():
        good = flip(path, position, int(generator.integers(8)))
        with pytest.raises(CorruptCache, match=r"000000\.safetensors.*--repair"):
            every_word(Cache(cache.path))
        findings = verify(Cache(cache.path)).damaged
        # Shards that only the pack knew are named as well where its list of shards is damaged.
        assert any(f"{name}/000000" in finding.path for finding in findings), position
        assert all(name in finding.path for finding in findings), position
        path.write_bytes(good)
    every_word(Cache(cache.path))
    record_property("G6", f"{FLIPS} flipped bytes of a pack: found, none believed")


@pytest.mark.parametrize("how", ["cut", "padded", "empty", "gone", "of another owner"])
@pytest.mark.parametrize("name", ["facts", "commits/a"])
def test_a_pack_that_is_cut_lost_or_swapped_is_found_and_made_again(
    name: str, how: str, make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(rejects=(3, 17))
    model = Cache(shutil.copytree(cache.path, tmp_path / "model"))
    cache = packed(cache)
    path = cache.path / f"packs/{name}/000000.safetensors"
    if how == "gone":
        path.unlink()
    elif how == "of another owner":
        shutil.copy(cache.path / "packs/commits/b/000000.safetensors", path)
    else:
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-1], "padded": data + b"\0", "empty": b""}[how])
    report = verify(Cache(cache.path))
    gone = how == "gone" and name == "commits/a"
    assert {f.shard for f in report.findings} == {0, 1, 2, 3}
    assert all(finding.unfinished == gone for finding in report.findings)
    cache = Cache(cache.path)
    discard(cache, report)
    rebuild(cache, model)


def rebuild(cache: Cache, model: Cache) -> None:
    """Extract what is missing, pack, and find the cache that ``model`` is."""
    for owner in cache.owners:
        for shard in cache.missing_shards(owner):
            start, stop = cache.info.shard_range(shard)
            rows = np.arange(start, stop)
            record = model.commits(owner)[shard]
            arrays = {}
            for kind, shape in model.shapes(owner).items():
                reader = model.reader(owner, kind)
                arrays[kind] = np.zeros((stop - start, *shape), reader.dtype)
                arrays[kind][record.accepted] = reader.read(rows[record.accepted])
            images, reasons = facts(start, stop - start), record.reasons
            cache.commit_shard(owner, shard, arrays, images=images, reasons=reasons, environment={})
    pack(cache)
    again = Cache(cache.path)
    assert [f for f in verify(again).findings if "/c/" not in f.path] == []
    assert {o: set(again.commits(o)) for o in again.owners} == {
        o: set(model.commits(o)) for o in model.owners
    }
    assert again.facts().sha256.tolist() == model.facts().sha256.tolist()


@pytest.mark.guarantee("G7", "of a damaged pack only the damaged shards are extracted again")
@pytest.mark.parametrize("name", ["facts", "commits/a"])
def test_only_the_damaged_shard_of_a_pack_is_lost(
    name: str, make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    model = Cache(shutil.copytree(cache.path, tmp_path / "model"))
    cache = packed(cache)
    path = cache.path / f"packs/{name}/000000.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    content = Columns(np.fromfile(path, np.uint8), "x")
    # Of records the first file of the second shard, which has two; of facts row 18, in shard 1.
    inside = content.unchecked("sha256")[2 if name == "commits/a" else 18]
    place = path.read_bytes().index(inside.tobytes())
    assert place > length
    flip(path, place + 3, 2)
    cache = Cache(cache.path)
    (finding,) = verify(cache).findings
    assert (finding.owner, finding.shard) == ("a" if name == "commits/a" else "pixels", 1)
    assert finding.rows == (tuple(range(16, 32)) if name == "facts" else ())
    assert discard(cache, verify(cache)) == 1
    write_missing(cache, model)
    pack(cache)
    assert said(Cache(cache.path)) == said(model)


def test_packing_damaged_records_is_refused_and_nothing_goes(make_cache: CacheFactory) -> None:
    cache = make_cache()
    path = cache.path / "commits/a/000001.json"
    path.write_bytes(path.read_bytes().replace(b'"start":16', b'"start":17'))
    with pytest.raises(CorruptCache, match=r"commits/a/000001\.json.*--repair"):
        pack(Cache(cache.path))
    assert len(list((cache.path / "commits/a").iterdir())) == 4


def test_what_was_written_is_read_again_before_anything_goes(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what it was given."""
    cache = make_cache()
    monkeypatch.setattr("phistill.cache.upkeep.pack.publish_records", lambda *arguments: None)
    with pytest.raises(CorruptCache, match="was not read again as it was written"):
        pack(cache)
    assert len(list((cache.path / "commits/pixels").iterdir())) == 4
    assert whole_records(cache.files, 0, "a", cache.info, cache.paths("a")).by_shard == {}
    assert store.open(cache.path).missing_shards("pixels") == []
