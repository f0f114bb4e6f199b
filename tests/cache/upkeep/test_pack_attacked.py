"""Packs that are changed while they are read, filled disks, lost answers, and any order of work."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from phistill.cache import Cache, ImageFacts, TeacherInfo
from phistill.cache.segments import publish_index
from phistill.cache.storage.objects import client
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.pack import PackReport, pack
from phistill.cache.upkeep.remove import remove_images, remove_teacher
from phistill.cache.upkeep.stage import Selection, stage
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import CorruptCache, PhistillError
from tests.cache.storage.objects.test_object_store import copy_to
from tests.cache.upkeep.test_pack import OWNERS, packed, said
from tests.cache.upkeep.test_pack_of_others import rewrite
from tests.conftest import FULL, CacheFactory, empty_cache, random_features, small_index
from tests.object_store import Fault, FaultProxy

TRIES = 400 if FULL else 6
NUM_SEEDS, NUM_STEPS = (200, 14) if FULL else (2, 7)


@pytest.mark.guarantee("G6", "a byte of a mapped pack changes after it was read: never believed")
@pytest.mark.parametrize("name", ["facts", *(f"commits/{owner}" for owner in OWNERS)])
def test_a_byte_of_a_pack_that_changes_while_it_is_in_use_is_never_believed(
    name: str, make_cache: CacheFactory
) -> None:
    """As a disk that loses a page which nobody holds in memory: neither time nor size tells."""
    cache = packed(make_cache(rejects=(3, 17)))
    path = cache.path / f"packs/{name}/000000.safetensors"
    good, found = path.read_bytes(), path.stat()

    def put(data: bytes) -> None:
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    columns = int.from_bytes(good[:8], "little") + 8
    places = np.random.default_rng(0).choice(np.arange(columns, len(good)), TRIES)
    for place in places.tolist():
        reader = Cache(cache.path)
        before = said(reader)
        put(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with suppress(CorruptCache):
            assert said(reader) == before, place
        put(good)


def test_a_pack_whose_digests_of_shards_are_wrong_is_refused_shard_by_shard(
    make_cache: CacheFactory,
) -> None:
    """Its columns match theirs."""
    cache = packed(make_cache())

    def change(columns: dict[str, Any]) -> None:
        columns["digests"][1, 3] ^= 1

    rewrite(cache.path / "packs/commits/a/000000.safetensors", change)
    assert Cache(cache.path).commits("a")[0].shard == 0
    with pytest.raises(CorruptCache, match=r"000000\.safetensors.*shard 1 .*--repair"):
        Cache(cache.path).commits("a")[1]
    assert [finding.shard for finding in verify(Cache(cache.path)).damaged] == [1]


@pytest.mark.guarantee("G5", "a full disk while packing, and while a shard is taken back: named")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
@pytest.mark.root
def test_a_disk_that_is_full_while_packing_loses_nothing(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mount)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        cache = make_cache(name="small/c")
        whole = cache.digest()
        for work in (pack, lambda known: known.forget_shard("a", 1)):
            ballast = mount / "ballast"
            _fill(ballast)
            with pytest.raises(PhistillError, match=r"packs/\S+ could not be written \([\d,]+ b"):
                work(Cache(cache.path))
            assert Cache(cache.path).digest() == whole
            assert verify(Cache(cache.path)).findings == ()
            ballast.unlink()
            pack(Cache(cache.path))
            assert Cache(cache.path).digest() == whole
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


@pytest.mark.guarantee("G22", "lost answers while packing: the same cache")
def test_answers_that_are_lost_while_packing_lose_nothing(
    make_cache: CacheFactory, bucket_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    cache = copy_to(bucket_url, make_cache())
    whole = cache.digest()
    proxy.faults = [
        Fault("lost", "PUT", "packs/facts"),
        Fault("lost", "PUT", "packs/commits/a"),
        Fault("lost", "POST", "delete", times=2),
        Fault("503", "PUT", "packs/commits/b"),
        Fault("cut", "GET", "packs/commits/b"),
    ]
    with cache.writing():
        assert pack(cache) == PackReport(4, 16)
    assert [fault for fault in proxy.faults if fault.times] == []
    again = Cache(bucket_url)
    assert again.digest() == whole
    assert verify(again).findings == ()


class Work:
    """A cache in the course of its life; some are packed on the way."""

    def __init__(self, folder: Path) -> None:
        teacher = TeacherInfo(name="a", grid=(2, 2), widths={"patches": 4, "summary": 3})
        settings: dict[str, Any] = {"num_rows": 30, "shard_rows": 4, "holdout": 0.3}
        self.folder, self.settings = folder, {**settings, "pixel_size": 4}
        folder.mkdir()
        self.cache = empty_cache(folder / "first", [teacher], **self.settings)

    def do(self, name: str, seed: int) -> None:
        """Something, the same for the same ``seed``; what it refuses is a part of it."""
        getattr(self, name)(random.Random(seed))

    def fill(self, chance: random.Random, cache: Cache | None = None) -> None:
        cache, reject = cache or self.cache, chance.randrange(7)
        for owner in cache.owners:
            missing = cache.missing_shards(owner)
            for shard in missing if chance.random() < 0.7 else missing[::2]:
                _commit(cache, owner, shard, reject)

    def take_back(self, chance: random.Random) -> None:
        owner = chance.choice(self.cache.owners)
        chosen = [s for s in self.cache.commits(owner) if chance.random() < 0.3]
        self.cache.forget_shards(owner, chosen)
        for shard in chosen[::2]:
            _commit(self.cache, owner, shard, chance.randrange(7))

    def append(self, chance: random.Random) -> None:
        word, num_rows = f"s{chance.random()}", chance.randrange(1, 40)
        add_segment(self.cache, _index(word, num_rows, self.cache.info.next_row))

    def take_in(self, chance: random.Random) -> None:
        teachers = [self.cache.teacher(name) for name in self.cache.teachers]
        other = empty_cache(self.folder / f"{chance.random()}", teachers, **self.settings)
        segment = publish_index(
            other.files, _index(f"m{chance.random()}", 20, 0), number=0, start=0, shard_rows=4
        )
        other.publish_root(replace(other.info, segments=(segment,)))
        other = Cache(other.path)
        self.fill(chance, other)
        merge(self.cache, other)

    def remove(self, chance: random.Random) -> None:
        remove_images(self.cache, chance.sample(self.cache.index(["id"])["id"].to_pylist(), 2))

    def swap_teacher(self, chance: random.Random) -> None:
        if len(self.cache.teachers) > 1:
            remove_teacher(self.cache, chance.choice(self.cache.teachers))
        name = f"t{chance.randrange(1000)}"
        self.cache.add_teacher(TeacherInfo(name=name, grid=(1, 2), widths={"patches": 3}))

    def copy(self, chance: random.Random) -> None:
        place = self.folder / f"{chance.random()}"
        if chance.random() < 0.5:
            self.cache = compact(self.cache, place, drop_removed=True, workers=1).cache
        else:
            rows = Selection(num_rows=chance.randrange(1, self.cache.num_rows + 1))
            selection = chance.choice([Selection(), Selection(split="train"), rows])
            self.cache = stage(self.cache, place, selection, workers=1).cache

    def repair(self, chance: random.Random) -> None:
        """Damage a file of a shard, and mend it."""
        owner = chance.choice(self.cache.owners)
        if not (shards := list(self.cache.commits(owner))):
            return
        shard = chance.choice(shards)
        path = self.cache.path / next(iter(self.cache.commits(owner)[shard].files))
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1
        path.write_bytes(data)
        report = verify(Cache(self.cache.path))
        assert {(finding.owner, finding.shard) for finding in report.damaged} == {(owner, shard)}
        assert discard(self.cache, report) == 1
        _commit(self.cache, owner, shard, chance.randrange(7))


WORK = (
    "fill",
    "append",
    "take_back",
    "take_in",
    "remove",
    "swap_teacher",
    "copy",
    "repair",
    "fill",
)


def _index(word: str, num_rows: int, start: int) -> Any:
    index = small_index(num_rows).set_column(0, "row", [np.arange(start, start + num_rows)])
    return index.set_column(1, "id", [[f"{word}-{row}" for row in range(num_rows)]])


def _commit(cache: Cache, owner: str, shard: int, reject: int) -> None:
    start, stop = cache.info.shard_range(shard)
    ids = cache.lines(np.arange(start, stop), ["id"])["id"].to_pylist()
    num = len(ids)
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
    images = ImageFacts.of(sha256=hashes, size=((8, 8),) * num, box=((0, 0, 8, 8),) * num)
    generator = np.random.default_rng([shard, len(owner)])
    if owner == "pixels":
        arrays: Any = {"pixels": generator.integers(0, 256, (num, 4, 4, 3), np.uint8)}
    else:
        arrays = random_features(generator, cache.teacher(owner), num)
    reasons = {slot: "invented" for slot in range(num) if (start + slot) % 7 == reject}
    cache.commit_shard(owner, shard, arrays, images=images, reasons=reasons, environment={})


def _state(cache: Cache) -> dict[str, Any]:
    facts = cache.facts()
    shards = cache.info.shards()
    return {
        "rows": {split: cache.rows(split=split).tolist() for split in ("all", "train", "heldout")},
        "one": {(o, s): cache.committed(o, s) for o in cache.owners for s in shards},
        "all": {owner: dict(cache.commits(owner)) for owner in cache.owners},
        "reasons": {owner: list(cache.commits(owner).reasons()) for owner in cache.owners},
        "images": [facts.sha256.tolist(), facts.heldout.tolist(), facts.digests.tolist()],
        "facts": [(one := cache.facts_of(shard)) and one.to_bytes() for shard in shards],
        "digest": cache.digest(),
    }


def _tried(do: Callable[[], None], folder: Path) -> str:
    try:
        do()
    except PhistillError as error:
        return str(error).replace(str(folder), "")
    return ""


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_cache_that_is_packed_all_the_time_is_the_one_that_never_is(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appended, merged, compacted, staged, damaged, mended, in any order; ranges end anywhere."""
    monkeypatch.setattr("phistill.cache.format.info.MAX_PACK_SHARDS", 3)
    chance = random.Random(seed)
    always, never = Work(tmp_path / "always"), Work(tmp_path / "never")
    for _ in range(NUM_STEPS):
        name, number = chance.choice(WORK), chance.randrange(10**6)
        refused = _tried(lambda: always.do(name, number), always.folder)  # noqa: B023
        pack(always.cache, everything=chance.random() < 0.5)
        with pytest.MonkeyPatch.context() as without:
            for room in ("merge", "copying"):
                without.setattr(f"phistill.cache.upkeep.{room}.pack", lambda cache: PackReport())
            assert _tried(lambda: never.do(name, number), never.folder) == refused  # noqa: B023
        state = _state(always.cache)
        assert state == _state(Cache(always.cache.path)), name
        assert state == _state(never.cache), name
        assert verify(Cache(always.cache.path)).damaged == (), name
