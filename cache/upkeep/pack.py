"""Commit records and facts of finished ranges, packed: one file instead of thousands.

A pack is made from what is there, durable, read again and compared with it, and only then do the
single files go. A call that is killed anywhere leaves a cache that says the same, and the next one
finishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from phistill.errors import CorruptCache, LockHeld, repair_text

from ..committed.packs import Whole, publish_facts, publish_records, whole_facts, whole_records
from ..format import names
from ..format.facts import ImageFacts
from ..format.record import CommitRecord
from ..store import Cache

LOOSE_SHARE = 8
"""A range may have so many packed shards for each that is not."""

T = TypeVar("T", CommitRecord, ImageFacts)


@dataclass(frozen=True, slots=True)
class PackReport:
    """What a call did."""

    num_packs: int = 0
    """Packs written."""
    num_files: int = 0
    """Files of single shards that went."""

    def __add__(self, other: PackReport) -> PackReport:
        return PackReport(self.num_packs + other.num_packs, self.num_files + other.num_files)


def pack(
    cache: Cache, ranges: Collection[int] | None = None, *, everything: bool = False
) -> PackReport:
    """Pack the ranges of shards that an owner has finished; of all ranges unless they are named.

    A range that is packed and grew by less than an eighth stays as it is. ``everything`` packs
    what there is of that, and of ranges that are not finished, too. The caller holds the shards.
    Raises CorruptCache, naming the file, for damaged records or facts, which stay as they are.
    """
    report = PackReport()
    kinds: list[_Kind[Any]] = [_facts(cache), *(_records(cache, owner) for owner in cache.owners)]
    for kind in kinds:
        loose, stored = kind.loose(), kind.stored()
        for number, shards in cache.info.ranges().items():
            if ranges is not None and number not in ranges:
                continue
            single = sorted(loose.intersection(shards))
            if single and (everything or _is_worth_it(shards, stored, len(single))):
                report += _pack_range(cache, kind, number, single)
    return report


def _is_worth_it(shards: Sequence[int], stored: set[int], num_single: int) -> bool:
    """Whether a range is finished, and enough of it is new: a cache that grows by a shard at a time
    does not write its packs again each time."""
    num_packed = len(stored.intersection(shards)) - num_single
    return stored.issuperset(shards) and num_single * LOOSE_SHARE >= num_packed


def pack_what_is_free(cache: Cache) -> PackReport:
    """``pack`` of the ranges that nobody else is writing: whoever is at one packs it then."""
    report, ranges = PackReport(), cache.info.ranges()
    for number in _worth_it(cache):
        try:
            with cache.writing(ranges[number]):
                report += pack(cache, {number})
        except LockHeld:
            continue
    return report


def _worth_it(cache: Cache) -> list[int]:
    """Ranges that ``pack`` would pack something of."""
    cache.catalogue.look_again()
    found = set()
    kinds: list[_Kind[Any]] = [_facts(cache), *(_records(cache, owner) for owner in cache.owners)]
    for kind in kinds:
        loose, stored = kind.loose(), kind.stored()
        for number, shards in cache.info.ranges().items():
            num_single = len(loose.intersection(shards))
            if num_single and _is_worth_it(shards, stored, num_single):
                found.add(number)
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[T]):
    """Facts, or the records of an owner: how they lie in single files and in packs."""

    loose: Callable[[], set[int]]
    stored: Callable[[], set[int]]
    read: Callable[[int], T]
    path: Callable[[int], str]
    whole: Callable[[int], Whole[T]]
    publish: Callable[[int, Mapping[int, T]], None]


def _facts(cache: Cache) -> _Kind[ImageFacts]:
    catalogue, files, info = cache.catalogue, cache.files, cache.info
    return _Kind(
        loose=lambda: catalogue.loose_shards(names.FACTS),
        stored=lambda: set(catalogue.stored_facts(info).tolist()),
        read=lambda shard: catalogue.read_facts(shard, info),
        path=names.facts,
        whole=lambda number: whole_facts(files, number, info),
        publish=lambda number, facts: publish_facts(files, number, facts),
    )


def _records(cache: Cache, owner: str) -> _Kind[CommitRecord]:
    catalogue, files, info, paths = cache.catalogue, cache.files, cache.info, cache.paths(owner)
    return _Kind(
        loose=lambda: catalogue.loose_shards(names.commits(owner)),
        stored=lambda: set(catalogue.stored_shards(owner, info, paths).tolist()),
        read=lambda shard: catalogue.read_record(owner, shard, info, paths(shard)),
        path=lambda shard: names.commit(owner, shard),
        whole=lambda number: whole_records(files, number, owner, info, paths),
        publish=lambda number, records: publish_records(files, number, owner, records),
    )


def _pack_range(cache: Cache, kind: _Kind[T], number: int, loose: Sequence[int]) -> PackReport:
    before = kind.whole(number)
    _require(cache, before)
    single: dict[int, T] = {}

    def read(shard: int) -> None:
        single[shard] = kind.read(shard)

    cache.files.each(read, loose)
    together = before.by_shard | single
    written = _digests(together) != _digests(before.by_shard)
    if written:
        kind.publish(number, together)
        after = kind.whole(number)
        _require(cache, after)
        if _digests(after.by_shard) != _digests(together):
            raise CorruptCache(
                f"{cache.location}: pack {number} was not read again as it was written; the single "
                "files are there as before. Check the disk."
            )
    cache.files.delete_all([kind.path(shard) for shard in loose])
    cache.catalogue.look_again()
    return PackReport(int(written), len(loose))


def _require(cache: Cache, whole: Whole[T]) -> None:
    if whole.problem:
        raise CorruptCache(f"{whole.problem.rstrip('.')}. {repair_text(cache.location)}")


def _digests(values: Mapping[int, T]) -> dict[int, str]:
    return {shard: value.digest for shard, value in values.items()}
