"""One shard of a copy: taken over to the byte, or put together from rows of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
from msgspec.structs import replace

from phistill.errors import CorruptCache, repair_text

from ..format import names
from ..format.facts import ImageFacts, joined
from ..format.info import DTYPES
from ..format.record import LOST_STEP, CommitRecord
from ..format.shard import index_bytes
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
    paths = cache.shard_paths(record.owner, record.shard), cache.shard_paths(record.owner, shard)
    return zip(*(by_kind.values() for by_kind in paths), strict=True)


class Origin:
    """One owner of the cache that is copied, looked up once for all of its shards."""

    def __init__(self, cache: Cache, owner: str) -> None:
        self.cache, self.owner = cache, owner
        self.commits = cache.commits(owner)
        self.shapes = cache.shapes(owner)
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
        shapes = self.target.shapes(self.owner)
        row = sum(int(np.prod(s)) * DTYPES[k].itemsize + 4 for k, s in shapes.items())
        return len(self.rows) * row + len(shapes) * index_bytes(self.target.info.shard_rows)

    def is_done_by(self, record: CommitRecord) -> bool:
        """Whether a record of the copy vouches for what this task would write."""
        if self.whole is not None:
            return record == renumbered(self.origin.cache, self.whole, self.shard)
        facts, reasons, environment = self._facts(self._records())
        expected = (facts.digest, reasons, environment)
        same = (record.facts, record.reasons, record.environment) == expected
        return same and set(record.files) == set(
            self.target.shard_paths(self.owner, self.shard).values()
        )

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
        arrays = {}
        for kind, shape in self.origin.shapes.items():
            dtype = DTYPES[kind]
            empty = np.nan if dtype.kind == "f" else 0
            values = np.full((len(self.rows), *shape), empty, dtype)
            if accepted.any():
                values[accepted] = self.origin.reader(kind).read(self.rows[accepted])
            arrays[kind] = values
        self.target.commit_shard(
            self.owner,
            self.shard,
            arrays,
            images=facts,
            reasons=reasons,
            environment=environment,
            lost=self._lost(records),
        )

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
            for name in self.origin.shapes
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
