"""Packs written and looked through: thousands of commit records, or of shards' facts, in one file.

A pack holds what the files of single shards said, to the byte, and the same content gives the same
pack. Ordinary reading believes a pack's columns by their digests, and a single shard by its own;
here each shard is judged by its own alone, so that of a damaged pack only what is damaged is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from phistill.errors import CorruptCache, PhistillError

from ..format import names
from ..format.arrays import ShardFiles
from ..format.columns import Columns, encode
from ..format.facts import ImageFacts
from ..format.info import CacheInfo
from ..format.record import CommitRecord
from ..storage.files import Files
from .fact_table import FactTable
from .record_table import RecordTable

T = TypeVar("T", CommitRecord, ImageFacts)


@dataclass(frozen=True, slots=True)
class Whole(Generic[T]):
    """What of a pack is whole."""

    by_shard: dict[int, T]
    """Of the shards that the cache has."""
    shards: frozenset[int] = frozenset()
    """All of its range that the pack names."""
    problem: str = ""
    """What is wrong with the rest; empty where every byte is right."""


def publish_records(
    files: Files, number: int, owner: str, records: Mapping[int, CommitRecord]
) -> None:
    """Make the pack of a range of an owner's records; of none, delete it."""
    path = names.pack(names.record_packs(owner), number)
    if not records:
        files.delete(path)
        return
    table = RecordTable.of(owner, list(records.values()))
    files.publish(path, encode(table.columns, msgspec.to_builtins(table.texts)))


def publish_facts(files: Files, number: int, facts: Mapping[int, ImageFacts]) -> None:
    """Make the pack of a range of facts; of none, delete it."""
    path = names.pack(names.FACT_PACKS, number)
    if not facts:
        files.delete(path)
        return
    files.publish(path, encode(FactTable.of(facts).columns, {}))


def whole_records(
    files: Files, number: int, owner: str, info: CacheInfo, paths: ShardFiles
) -> Whole[CommitRecord]:
    """The records of a pack whose own digest is right; none where there is no pack."""
    content, problem = _open(files, names.pack(names.record_packs(owner), number))
    if content is None:
        return Whole({}, problem=problem)
    try:
        table = RecordTable.unchecked(content)
    except CorruptCache as error:
        return Whole({}, problem=str(error))
    within = info.pack_range(number)
    problem = problem or _misfit(lambda: RecordTable.of_columns(content, owner, within, paths))
    found, lost = {}, 0
    for place, shard in enumerate(table.shards.tolist()):
        if shard not in within or info.segment_of(shard * info.shard_rows) is None:
            continue
        try:
            record = table.record(place, info.shard_range(shard), paths(shard))
        except (PhistillError, IndexError, ValueError, OverflowError):
            lost += 1
            continue
        if record.owner == owner:
            found[shard] = record
        else:
            lost += 1
    named = frozenset(shard for shard in table.shards.tolist() if shard in within)
    return Whole(found, named, problem or _lost(content, lost))


def whole_facts(files: Files, number: int, info: CacheInfo) -> Whole[ImageFacts]:
    """The facts of a pack whose own digest is right; none where there is no pack."""
    content, problem = _open(files, names.pack(names.FACT_PACKS, number))
    if content is None:
        return Whole({}, problem=problem)
    try:
        table = FactTable.unchecked(content)
    except CorruptCache as error:
        return Whole({}, problem=str(error))
    within = info.pack_range(number)
    problem = problem or _misfit(lambda: FactTable.of_columns(content, info, number))
    found, lost = {}, 0
    for place, shard in enumerate(table.shards.tolist()):
        if shard not in within or info.segment_of(shard * info.shard_rows) is None:
            continue
        start, stop = info.shard_range(shard)
        try:
            facts = table.facts(place)
        except CorruptCache:
            lost += 1
            continue
        if len(facts) == stop - start:
            found[shard] = facts
        else:
            lost += 1
    named = frozenset(shard for shard in table.shards.tolist() if shard in within)
    return Whole(found, named, problem or _lost(content, lost))


def _misfit(read: Callable[[], object]) -> str:
    """What ordinary reading of a pack refuses, empty where nothing."""
    try:
        read()
    except CorruptCache as error:
        return str(error)
    return ""


def _lost(content: Columns, num_shards: int) -> str:
    return (
        f"{content.where}: {num_shards} shards of it do not match their digests"
        if num_shards
        else ""
    )


def _open(files: Files, path: str) -> tuple[Columns | None, str]:
    """A pack and what is wrong with it; neither where there is none."""
    try:
        content = Columns(files.mapped(path), files.where(path))
        wrong = []
    except FileNotFoundError:
        return None, ""
    except (CorruptCache, OSError) as error:
        return None, str(error)
    for name in content:
        try:
            content.copied(name)
        except CorruptCache as error:
            wrong.append(str(error))
    return content, wrong[0] if wrong else ""
