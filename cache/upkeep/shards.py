"""One shard of a copy: taken over to the byte, or put together from rows of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import CorruptCache, repair_text

from ..format import names
from ..format.arrays import ArrayLayout
from ..format.facts import ImageFacts, joined
from ..format.record import LOST_STEP, CommitRecord
from ..reader import ArrayReader
from ..store import Cache
from .layout import Rows


def renumbered(cache: Cache, record: CommitRecord, shard: int) -> CommitRecord:
    """The record of the same files under another number."""
    files = {new: record.files[old] for old, new in _paths(cache, record, shard)}
    return replace(record, shard=shard, start=shard * cache.info.shard_rows, files=files)


def copy_shard(source: Cache, target: Cache, record: CommitRecord, shard: int) -> None:
    """Copy a shard to the byte under the number ``shard``, its record last.

    CorruptCache, naming the file, when it is not the one that was committed; CacheMismatch where
    the target has other images in its place, and their sides where it has the same.
    """
    images = source.committed_facts(record)
    facts = target.settle_facts(record.owner, shard, images)
    for old, new in _paths(source, record, shard):
        data = source.files.read(old)
        if hashlib.sha256(data).hexdigest() != record.files[old][1]:
            raise CorruptCache(
                f"{source.files.where(old)} is not the file that was committed; nothing was copied "
                f"from it. {repair_text(source.location)} Then copy again."
            )
        target.files.publish(new, [data])
    moved = renumbered(source, record, shard)
    target.publish_record(replace(moved, facts=facts.digest))


def _paths(cache: Cache, record: CommitRecord, shard: int) -> Iterator[tuple[str, str]]:
    """Each file of a shard, and its path under another number."""
    shift = shard - record.shard
    for layout in cache.layouts(record.owner).values():
        per_shard = cache.info.shard_rows // layout.file_rows
        for file in layout.files(record.start, record.start + record.num_rows):
            yield layout.path(file), layout.path(file + shift * per_shard)


class Origin:
    """One owner of the cache that is copied, looked up once for all of its shards."""

    def __init__(self, cache: Cache, owner: str) -> None:
        self.cache, self.owner = cache, owner
        self.commits = cache.commits(owner)
        self.layouts = cache.layouts(owner)
        self._lock = Lock()
        self._readers: dict[str, ArrayReader] = {}

    def reader(self, name: str) -> ArrayReader:
        """The reader of one array as it is stored; several threads ask."""
        with self._lock:
            if name not in self._readers:
                self._readers[name] = self.cache.array_reader(self.owner, name)
            return self._readers[name]


@dataclass(frozen=True, eq=False, slots=True)
class ShardTask:
    """One shard of one owner of the copy."""

    origin: Origin
    target: Cache
    shard: int
    rows: Rows
    """Of the source, ascending."""
    whole: CommitRecord | None
    """The record of the source's shard when this one is just that shard."""

    @property
    def owner(self) -> str:
        return self.origin.owner

    @property
    def num_bytes(self) -> int:
        if self.whole is not None:
            return self.whole.num_bytes
        layouts = self.target.layouts(self.owner).values()
        return sum(layout.stored_bytes(len(self.rows)) for layout in layouts)

    def is_done_by(self, record: CommitRecord) -> bool:
        """Whether a record of the copy vouches for what this task would write."""
        if self.whole is not None:
            return record == renumbered(self.origin.cache, self.whole, self.shard)
        facts, reasons, environment = self._facts(self._records())
        expected = (facts.digest, reasons, environment)
        same = (record.facts, record.reasons, record.environment) == expected
        return same and set(record.files) == set(self.target.paths(self.owner)(self.shard))

    def run(self) -> ShardTask:
        """Write the shard's files and then its record."""
        if self.whole is None:
            self._gather()
        else:
            copy_shard(self.origin.cache, self.target, self.whole, self.shard)
        return self

    def _gather(self) -> None:
        records = self._records()
        facts, reasons, environment = self._facts(records)
        accepted = ~self.origin.cache.info.is_removed(self.rows)  # removed: hidden here too
        accepted[list(reasons)] = False
        writer = self.target.shard_writer(self.owner, self.shard)
        step = min(layout.file_rows for layout in self.origin.layouts.values())
        for first in range(0, len(self.rows), step):
            part = slice(first, first + step)
            arrays = {
                name: self._values(layout, self.rows[part], accepted[part])
                for name, layout in self.origin.layouts.items()
            }
            rejected = np.flatnonzero(~accepted[part]).tolist()
            for file in writer.add(arrays, rejected=rejected, copy=False):
                writer.write(file)
        lost = self._lost(records)
        self.target.commit(
            writer, images=facts, reasons=reasons, environment=environment, lost=lost
        )

    def _values(self, layout: ArrayLayout, rows: Rows, accepted: NDArray[np.bool_]) -> NDArray[Any]:
        """What the source stores of ``rows`` (n,): (n, *row_shape)."""
        empty = np.nan if layout.dtype.kind == "f" else 0
        values = np.full((len(rows), *layout.row_shape), empty, layout.dtype)
        if accepted.any():
            values[accepted] = self.origin.reader(layout.kind).read(rows[accepted])
        return values

    def _lost(self, records: Mapping[int, CommitRecord]) -> dict[str, float]:
        """What codes that are taken over lose: the mean of the shards they are of, by rows."""
        shards, counts = np.unique(
            self.rows // self.origin.cache.info.shard_rows, return_counts=True
        )
        return {
            name: sum(
                records[shard].lost[name] * count
                for shard, count in zip(shards.tolist(), counts.tolist(), strict=True)
            )
            * LOST_STEP
            / len(self.rows)
            for name in self.origin.layouts
            if names.kind_of(name) != name
        }

    def _records(self) -> dict[int, CommitRecord]:
        """Of the source's shards that the rows are of, ascending."""
        shards = np.unique(self.rows // self.origin.cache.info.shard_rows)
        return {shard: self.origin.commits[shard] for shard in shards.tolist()}

    def _facts(
        self, records: Mapping[int, CommitRecord]
    ) -> tuple[ImageFacts, dict[int, str], dict[str, str]]:
        """What the source says of the rows: images, reasons by slot, environment."""
        shards, slots = np.divmod(self.rows, self.origin.cache.info.shard_rows)
        facts = joined(
            [
                self.origin.cache.committed_facts(record).take(slots[shards == shard])
                for shard, record in records.items()
            ]
        )
        reasons = {
            new: records[shard].reasons[slot]
            for new, (shard, slot) in enumerate(zip(shards.tolist(), slots.tolist(), strict=True))
            if slot in records[shard].reasons
        }
        environment: dict[str, str] = {}
        for record in records.values():
            for key, value in record.environment.items():
                if value not in environment.setdefault(key, value).split(" | "):
                    environment[key] += f" | {value}"
        return facts, reasons, environment
