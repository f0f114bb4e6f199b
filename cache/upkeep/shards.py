"""One shard of a copy: taken over to the byte, or put together from rows of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from phistill.errors import CorruptCache, repair_text

from ..format.facts import ImageFacts, joined
from ..format.info import DTYPES
from ..format.record import CommitRecord
from ..format.shard import index_bytes
from ..rows import readable_rows
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


@dataclass(frozen=True, eq=False, slots=True)
class ShardTask:
    """One shard of one owner of the copy."""

    source: Cache
    target: Cache
    owner: str
    shard: int
    rows: Rows
    """Of the source, ascending."""
    whole: CommitRecord | None
    """The record of the source's shard when this one is just that shard."""

    @property
    def num_bytes(self) -> int:
        if self.whole is not None:
            return self.whole.num_bytes
        shapes = self.source.shapes(self.owner)
        row = sum(int(np.prod(s)) * DTYPES[k].itemsize + 4 for k, s in shapes.items())
        return len(self.rows) * row + len(shapes) * index_bytes(self.source.info.shard_rows)

    def is_done_by(self, record: CommitRecord) -> bool:
        """Whether a record of the copy vouches for what this task would write."""
        if self.whole is not None:
            return record == renumbered(self.source, self.whole, self.shard)
        facts, reasons, environment = self._facts()
        expected = (facts.digest, reasons, environment)
        return (record.facts, record.reasons, record.environment) == expected

    def run(self) -> ShardTask:
        """Write the shard's files and then its record."""
        if self.whole is None:
            self._gather()
        else:
            copy_shard(self.source, self.target, self.whole, self.shard)
        return self

    def _gather(self) -> None:
        facts, reasons, environment = self._facts()
        records = self.source.commits(self.owner)
        accepted = readable_rows(self.source.info, records)[self.rows]  # removed: hidden here too
        arrays = {}
        for kind, shape in self.source.shapes(self.owner).items():
            dtype = DTYPES[kind]
            empty = np.nan if dtype.kind == "f" else 0
            values = np.full((len(self.rows), *shape), empty, dtype)
            if accepted.any():
                values[accepted] = self.source.reader(self.owner, kind).read(self.rows[accepted])
            arrays[kind] = values
        self.target.commit_shard(
            self.owner,
            self.shard,
            arrays,
            images=facts,
            reasons=reasons,
            environment=environment,
        )

    def _facts(self) -> tuple[ImageFacts, dict[int, str], dict[str, str]]:
        """What the records of the source say of the rows: images, reasons by slot, environment."""
        commits = self.source.commits(self.owner)
        shards, slots = np.divmod(self.rows, self.source.info.shard_rows)
        records = {shard: commits[shard] for shard in np.unique(shards).tolist()}
        facts = joined(
            [
                self.source.committed_facts(record).take(slots[shards == shard])
                for shard, record in records.items()
            ]
        )
        places = [
            (records[shard], slot)
            for shard, slot in zip(shards.tolist(), slots.tolist(), strict=True)
        ]
        reasons = {
            new: record.reasons[slot]
            for new, (record, slot) in enumerate(places)
            if slot in record.reasons
        }
        environment: dict[str, str] = {}
        for record in records.values():
            for key, value in record.environment.items():
                if value not in environment.setdefault(key, value).split(" | "):
                    environment[key] += f" | {value}"
        return facts, reasons, environment
