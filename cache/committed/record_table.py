"""Many commit records of one owner as columns: what a pack stores, and what is counted with.

k records, f files of all of them, m rejected rows. A record has the same digest here as in a file
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import msgspec
import numpy as np
from jaxtyping import Float, UInt8, UInt32
from numpy.typing import NDArray

from ..format.arrays import ShardFiles
from ..format.columns import Columns, ascend_within
from ..format.record import LOST_STEP, CommitRecord
from .shard_table import Arrays, ShardTable

Range = tuple[int, int]

KINDS: dict[str, tuple[str, int]] = {
    "shards": ("<i8", 1),
    "num_files": ("<u4", 1),
    "num_bytes": ("<i8", 1),
    "sha256": ("u1", 2),
    "facts": ("u1", 2),
    "digests": ("u1", 2),
    "environment": ("<u4", 1),
    "num_rejects": ("<u4", 1),
    "reject_slots": ("<u4", 1),
    "reject_reasons": ("<u4", 1),
}
"""The type and the dimensions of each column."""

LOST = {"lost": ("<u4", 2)}
"""And of the one that owners with arrays of codes have besides."""


class Texts(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What records say in words, each text once."""

    owner: str
    environments: tuple[dict[str, str], ...]
    reasons: tuple[str, ...]
    codes: tuple[str, ...] = ()
    """The arrays of codes, ascending."""


class RecordTable(ShardTable):
    """Records by ascending shard; ``digests`` are those of the records."""

    def __init__(self, texts: Texts, columns: Arrays, content: Columns | None = None) -> None:
        super().__init__(columns, content)
        self.texts = texts

    def record_bytes(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes (p,) of all files of the records at ``places`` (p,)."""
        until = np.concatenate([[0], np.cumsum(self.columns["num_bytes"])])[self.file_ends]
        return np.diff(until)[places]

    def file_bytes(self, place: int) -> list[int]:
        """Of each file of the record at ``place``, by ascending path."""
        begin, end = self.file_ends[place : place + 2].tolist()
        sizes: list[int] = self.columns["num_bytes"][begin:end].tolist()
        return sizes

    @property
    def facts(self) -> UInt8[np.ndarray, "k 32"]:
        """Digest of the facts that each record stands on."""
        return self.columns["facts"]

    @property
    def num_rejects(self) -> UInt32[np.ndarray, " k"]:
        """Rows that each record rejected."""
        return self.columns["num_rejects"]

    @classmethod
    def of(cls, owner: str, records: Sequence[CommitRecord]) -> Self:
        """The table of ``records``."""
        records = sorted(records, key=lambda record: record.shard)
        environments: dict[tuple[tuple[str, str], ...], int] = {}
        reasons: dict[str, int] = {}
        rejected = [item for record in records for item in sorted(record.reasons.items())]
        files = [file for record in records for _, file in sorted(record.files.items())]
        keys = [tuple(sorted(record.environment.items())) for record in records]
        columns: dict[str, NDArray[Any]] = {
            "shards": np.array([record.shard for record in records], np.int64),
            "num_files": np.array([len(record.files) for record in records], np.uint32),
            "num_bytes": np.array([size for size, _ in files], np.int64),
            "sha256": _bytes([sha256 for _, sha256 in files]),
            "facts": _bytes([record.facts for record in records]),
            "digests": _bytes([record.digest for record in records]),
            "environment": _numbered(keys, environments),
            "num_rejects": np.array([len(record.reasons) for record in records], np.uint32),
            "reject_slots": np.array([slot for slot, _ in rejected], np.uint32),
            "reject_reasons": _numbered([reason for _, reason in rejected], reasons),
        }
        codes = tuple(sorted(records[0].lost)) if records else ()
        if codes:
            lost = [[record.lost[name] for name in codes] for record in records]
            columns["lost"] = np.array(lost, np.uint32)
        texts = Texts(
            owner=owner,
            environments=tuple(map(dict, environments)),
            reasons=tuple(reasons),
            codes=codes,
        )
        return cls(texts, columns)

    @classmethod
    def of_columns(cls, content: Columns, owner: str, within: range, files: ShardFiles) -> Self:
        """The table of an ``owner`` whose shards have these ``files`` that a pack of shards
        ``within`` a range holds; CorruptCache for another's, and for columns that do not fit one
        another."""
        texts = cls.unchecked(content).texts
        if texts.owner != owner:
            raise content.damaged(f"it is the pack of {texts.owner!r}")
        table = cls(texts, content, content)
        k, shapes = len(table), content.shapes()
        m = int(table.num_rejects.sum(dtype=np.int64))
        f = int(content["num_files"].sum(dtype=np.int64))
        expected = {
            "shards": (k,), "num_files": (k,), "num_bytes": (f,), "sha256": (f, 32),
            "facts": (k, 32), "digests": (k, 32), "environment": (k,), "num_rejects": (k,),
            "reject_slots": (m,), "reject_reasons": (m,),
        }  # fmt: skip
        if texts.codes:
            expected["lost"] = (k, len(texts.codes))
        if (
            shapes != expected
            or not ascend_within(table.shards, within)
            or not files.have(table.shards, content["num_files"])
            or (content["environment"] >= len(texts.environments)).any()
            or (content["reject_reasons"] >= len(texts.reasons)).any()
        ):
            raise content.damaged("its columns do not fit one another")
        return table

    @classmethod
    def unchecked(cls, content: Columns) -> Self:
        """The table of a pack some of whose bytes may have changed; CorruptCache for a pack of
        something else."""
        try:
            texts = msgspec.convert(content.facts, Texts)
        except msgspec.ValidationError as error:
            raise content.damaged(str(error)) from error
        content.require(KINDS | LOST if texts.codes else KINDS)
        return cls(texts, {name: content.unchecked(name) for name in content}, content)

    @cached_property
    def file_ends(self) -> NDArray[np.int64]:
        """(k + 1,) where each record's files begin and end."""
        return np.concatenate([[0], np.cumsum(self.columns["num_files"], dtype=np.int64)])

    @cached_property
    def reject_ends(self) -> NDArray[np.int64]:
        """(k + 1,) where each record's rejects begin and end."""
        return np.concatenate([[0], np.cumsum(self.num_rejects, dtype=np.int64)])

    def record(self, place: int, rows: Range, paths: Sequence[str]) -> CommitRecord:
        """The record at ``place``: its rows are [start, stop), its files ``paths``, ascending.
        CorruptCache unless it matches its digest."""
        begin, end = self.reject_ends[place : place + 2].tolist()
        slots = self.columns["reject_slots"][begin:end].tolist()
        positions = self.columns["reject_reasons"][begin:end].tolist()
        sizes, first = self.file_bytes(place), int(self.file_ends[place])
        stored = self.columns["sha256"][first : first + len(sizes)]
        hashes = [sha256.tobytes().hex() for sha256 in stored]
        record = CommitRecord(
            owner=self.texts.owner,
            shard=int(self.shards[place]),
            start=rows[0],
            num_rows=rows[1] - rows[0],
            files=dict(zip(paths, zip(sizes, hashes, strict=True), strict=True)),
            facts=self.facts[place].tobytes().hex(),
            reasons={slot: self.texts.reasons[n] for slot, n in zip(slots, positions, strict=True)},
            environment=dict(self.texts.environments[int(self.columns["environment"][place])]),
            lost=self._lost(place),
        )
        self.require_digest(place, record.digest)
        return record

    def _lost(self, place: int) -> dict[str, int]:
        if not self.texts.codes:
            return {}
        return dict(zip(self.texts.codes, self.columns["lost"][place].tolist(), strict=True))

    def lost(self, name: str) -> Float[np.ndarray, " k"]:
        """The share of variance that the codes of an array lose in each shard."""
        return self.columns["lost"][:, self.texts.codes.index(name)] * LOST_STEP

    def rejected(
        self, places: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Rows (m,) that the records at ``places`` (p,) rejected, in their order, and the position
        of each one's reason in the texts; ``starts`` (p,) are the records' first rows."""
        counts = self.num_rejects[places].astype(np.int64)
        offsets = np.repeat(self.reject_ends[places] - np.cumsum(counts) + counts, counts)
        taken = np.arange(counts.sum()) + offsets
        rows = np.repeat(starts, counts) + self.columns["reject_slots"][taken]
        return rows, self.columns["reject_reasons"][taken]


def _bytes(hashes: Sequence[str]) -> NDArray[np.uint8]:
    """(n, 32) from n texts of 64 hex digits."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def _numbered(values: Sequence[Any], numbers: dict[Any, int]) -> NDArray[np.uint32]:
    """The number of each value, in the order in which they first come; fills ``numbers``."""
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.uint32)


def place_of(shards: NDArray[np.int64], shard: int) -> int | None:
    """Where a shard stands among ``shards``, which ascend; None where it is not."""
    place = int(np.searchsorted(shards, shard))
    return place if place < len(shards) and int(shards[place]) == shard else None
