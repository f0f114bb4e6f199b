"""Packs from elsewhere, and packs that another process makes while one reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.cache.committed.packs import publish_facts
from phistill.cache.format.columns import Columns, encode
from phistill.cache.upkeep.pack import pack
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CorruptCache, StoreError
from tests.cache.storage.objects.test_object_store import copy_to
from tests.cache.upkeep.test_pack import packed, said
from tests.conftest import CacheFactory, write_missing


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of two shards."""
    monkeypatch.setattr("phistill.cache.format.info.MAX_PACK_SHARDS", 2)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Make a pack say something else, with digests that are right."""
    content = Columns(np.fromfile(path, np.uint8), "x")
    columns = {name: np.array(content[name]) for name in content}
    change(columns)
    path.write_bytes(b"".join(encode(columns, content.facts)))


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.guarantee("G6", "two packs of one kind swapped: found, refused, made again")
@pytest.mark.parametrize("name", ["facts", "commits/a"])
def test_two_packs_that_were_swapped_are_found_and_made_again(
    name: str, make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=64)
    model = Cache(shutil.copytree(cache.path, tmp_path / "model"))
    whole = said(cache)
    cache = packed(cache)
    first, second = (cache.path / f"packs/{name}/{n:06d}.safetensors" for n in (0, 1))
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    asked: list[Callable[[Cache], object]] = [
        lambda c: c.rows(),
        lambda c: c.committed("a", 0) and c.facts_of(0),
    ]
    for ask in asked:
        with pytest.raises(CorruptCache, match=r"00000\d\.safetensors.*--repair"):
            ask(Cache(cache.path))
    report = verify(Cache(cache.path))
    assert {finding.shard for finding in report.damaged} == {0, 1, 2, 3}
    cache = Cache(cache.path)
    discard(cache, report)
    write_missing(cache, model)
    pack(cache)
    assert said(Cache(cache.path)) == whole


def test_a_pack_of_other_arrays_than_its_owner_has_is_refused_by_name(
    make_cache: CacheFactory,
) -> None:
    cache = packed(make_cache())

    def twice(columns: dict[str, Any]) -> None:
        columns["num_files"] *= 2
        for name in ("num_bytes", "sha256"):
            columns[name] = np.repeat(columns[name], 2, axis=0)

    rewrite(cache.path / "packs/commits/a/000000.safetensors", twice)
    asked: list[Callable[[Cache], object]] = [
        lambda c: dict(c.commits("a")),
        lambda c: c.committed("a", 1),
        lambda c: c.commits("a").file_bytes(1),
        lambda c: c.reader("a", "patches").read(np.array([4])),
        lambda c: c.digest(),
    ]
    for ask in asked:
        with pytest.raises(CorruptCache, match=r"000000\.safetensors.*--repair"):
            ask(Cache(cache.path))
    assert len(verify(Cache(cache.path)).damaged) == 4


def test_facts_of_another_number_of_rows_are_refused_by_name(make_cache: CacheFactory) -> None:
    cache = packed(make_cache())

    def move(columns: dict[str, Any]) -> None:
        columns["num_rows"][:2] += np.array([1, -1]).astype(np.uint32)

    rewrite(cache.path / "packs/facts/000000.safetensors", move)
    asked: list[Callable[[Cache], object]] = [
        lambda c: c.rows(),
        lambda c: c.facts_of(0),
        lambda c: c.facts_of(1),
    ]
    for ask in asked:
        with pytest.raises(CorruptCache, match=r"000000\.safetensors.*--repair"):
            ask(Cache(cache.path))


@pytest.mark.guarantee("G20", "a pack whose columns claim impossible shapes: refused")
@pytest.mark.parametrize(
    "shape", [[float("inf")], [0, 2**62], [0, 2**70], [0] * 70, [0, 2**40, 2**40]], ids=str
)
def test_a_column_of_an_impossible_shape_is_refused(shape: list[Any]) -> None:
    """Its digests are right."""
    blank, empty = "0" * 64, hashlib.sha256(b"").hexdigest()
    about = json.dumps({"facts": {}, "columns": {"x": empty}, "sha256": blank}, sort_keys=True)
    column = {"dtype": "I64", "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps({"__metadata__": {"phistill": about}, "x": column}).encode()
    text = text.replace(blank.encode(), hashlib.sha256(text).hexdigest().encode())
    content = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    with pytest.raises(CorruptCache, match="header"):
        Columns(content, "x")


def test_who_listed_single_files_before_they_were_packed_finds_them_in_the_packs(
    make_cache: CacheFactory, bucket_url: str
) -> None:
    """A store is listed once at the start."""
    local = make_cache(rejects=(3, 17))
    cache = copy_to(bucket_url, local)
    expected = {split: local.rows(split=split).tolist() for split in ("all", "train", "heldout")}
    asked: list[Callable[[Cache], bool]] = [
        lambda c: {s: c.rows(split=s).tolist() for s in ("all", "train", "heldout")} == expected,
        lambda c: dict(c.commits("a")) == dict(local.commits("a")),
        lambda c: c.committed("a", 1) == local.committed("a", 1),
        lambda c: c.facts_of(1).digest == local.facts_of(1).digest,  # type: ignore[union-attr]
        lambda c: c.digest() == local.digest(),
        lambda c: verify(c).findings == (),
    ]
    readers = [Cache(bucket_url) for _ in asked]
    for reader in readers:
        assert reader.missing_shards("a") == []  # lists
    assert pack(cache).num_files == 16
    for ask, reader in zip(asked, readers, strict=True):
        assert ask(reader)


def test_a_column_of_nothing_behind_what_came_first_is_no_request(
    make_cache: CacheFactory, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row was rejected; on a store, the beginning of a pack comes when it is opened."""
    monkeypatch.setattr("phistill.cache.storage.objects.files.START_BYTES", 1000)
    cache = copy_to(bucket_url, make_cache())
    assert pack(cache).num_files == 16
    assert verify(Cache(bucket_url)).findings == ()


def test_a_pack_that_is_replaced_while_it_is_read_is_no_damage(
    make_cache: CacheFactory, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its columns are read when they are asked for, each by a request of its own."""
    monkeypatch.setattr("phistill.cache.storage.objects.files.START_BYTES", 1000)
    cache = copy_to(bucket_url, make_cache())
    pack(cache)
    reader = Cache(bucket_url)
    facts = reader.facts()
    known = {shard: one for shard in (0, 1, 2) if (one := cache.facts_of(shard)) is not None}
    publish_facts(cache.files, 0, {**known, 3: known[0].take(np.array([1, 0]))})
    with pytest.raises(StoreError, match="was written again by another process"):
        facts.sha256  # noqa: B018
    publish_facts(cache.files, 0, known)
    with pytest.raises(StoreError, match="was written again by another process"):
        facts.sha256  # noqa: B018


def test_a_pack_that_is_read_whole_from_a_store_has_a_limit(
    make_cache: CacheFactory, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(copy_to(bucket_url, make_cache()))
    monkeypatch.setattr("phistill.cache.storage.objects.files.MAX_FILE_BYTES", 500)
    with pytest.raises(CorruptCache, match="at most 500 is expected"):
        Cache(bucket_url).rows()


def test_verify_beside_a_packer_finds_nothing(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=256, shard_rows=4)
    loose = {p: cache.files.read(p) for p in cache.files.walk() if p.startswith("facts/")}
    done = threading.Event()

    def pack_and_unpack() -> None:
        mine = Cache(cache.path)
        while not done.is_set():
            pack(mine)
            for path, data in loose.items():
                mine.files.publish(path, [data])

    thread = threading.Thread(target=pack_and_unpack)
    thread.start()
    try:
        for _ in range(5):
            assert verify(Cache(cache.path)).findings == ()
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files where Linux does")
@pytest.mark.usefixtures("small_ranges")
@pytest.mark.guarantee("G28", "packs that are in use hold no file open")
def test_packs_in_use_hold_no_file_open(make_cache: CacheFactory) -> None:
    cache = packed(make_cache(num_rows=160, shard_rows=4))
    before = len(os.listdir("/proc/self/fd"))
    facts = cache.facts()
    assert cache.rows(split="all").size == 160
    assert facts.sha256.any()
    assert len(os.listdir("/proc/self/fd")) == before
