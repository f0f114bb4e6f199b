"""The commit records of one owner as columns; a record is made for whoever asks for one.

k committed shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from ..format.arrays import ShardFiles
from ..format.info import CacheInfo
from ..format.record import CommitRecord
from .record_table import RecordTable, place_of


class Commits(Mapping[int, CommitRecord]):
    """Records by shard, ascending. Of a shard that several tables have, the last one's counts."""

    def __init__(self, info: CacheInfo, paths: ShardFiles, tables: Sequence[RecordTable]) -> None:
        """Shards that ``info`` does not have are left out: they are of segments added since."""
        self._info, self._paths, self._tables = info, paths, tuple(tables)
        shards = np.concatenate([np.empty(0, np.int64), *(table.shards for table in tables)])
        order = np.argsort(shards, kind="stable")
        sorted_shards = shards[order]
        last = np.append(sorted_shards[1:] != sorted_shards[:-1], True)[: shards.size]
        chosen = order[last]
        chosen = chosen[np.isin(shards[chosen], info.shard_numbers)]
        sizes = [len(table) for table in tables]
        self.shards: Int64[np.ndarray, " k"] = shards[chosen]
        self._table_of = np.repeat(np.arange(len(sizes)), sizes)[chosen]
        self._place = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])[chosen]

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shards.tolist())

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int | np.integer) and self._position(int(shard)) is not None

    def __getitem__(self, shard: int) -> CommitRecord:
        position = self._position(shard)
        if position is None:
            raise KeyError(shard)
        table = self._tables[self._table_of[position]]
        return table.record(
            int(self._place[position]), self._info.shard_range(shard), self._paths(shard)
        )

    def _position(self, shard: int) -> int | None:
        return place_of(self.shards, shard)

    @cached_property
    def facts(self) -> UInt8[np.ndarray, "k 32"]:
        """Digest of the facts that each record stands on."""
        return self._gathered("facts", (32,), np.uint8)

    @cached_property
    def digests(self) -> UInt8[np.ndarray, "k 32"]:
        """Digest of each record."""
        return self._gathered("digests", (32,), np.uint8)

    @cached_property
    def shard_bytes(self) -> Int64[np.ndarray, " k"]:
        """Bytes of each shard over all arrays."""
        sizes = np.zeros(len(self), np.int64)
        for number, table in enumerate(self._tables):
            mine = self._table_of == number
            sizes[mine] = table.record_bytes(self._place[mine])
        return sizes

    def lost(self, name: str) -> Float[np.ndarray, " k"]:
        """The share of variance that the codes of an array lose in each shard."""
        shares = np.zeros(len(self))
        for number, table in enumerate(self._tables):
            mine = self._table_of == number
            if mine.any():
                shares[mine] = table.lost(name)[self._place[mine]]
        return shares

    def file_bytes(self, shard: int) -> dict[str, int]:
        """Path to bytes of each file of a committed shard."""
        position = self._position(shard)
        if position is None:
            raise KeyError(shard)
        sizes = self._tables[self._table_of[position]].file_bytes(int(self._place[position]))
        return dict(zip(self._paths(shard), sizes, strict=True))

    @cached_property
    def rejected(self) -> Int64[np.ndarray, " m"]:
        """Rows that were rejected, ascending."""
        return self._rejects[0]

    def reason(self, row: int) -> str | None:
        """Why a row was rejected; None when it was not."""
        rows, reasons = self._rejects
        place = int(np.searchsorted(rows, row))
        found = place < len(rows) and rows[place] == row
        return self._reason_texts[int(reasons[place])] if found else None

    def reasons(self) -> Iterator[tuple[int, str]]:
        """(row, why) of every rejected row, ascending."""
        rows, reasons = self._rejects
        texts = self._reason_texts
        return ((row, texts[n]) for row, n in zip(rows.tolist(), reasons.tolist(), strict=True))

    def reason_counts(self) -> Counter[str]:
        """How many rows were rejected for each reason."""
        counts = np.bincount(self._rejects[1], minlength=len(self._reason_texts)).tolist()
        total: Counter[str] = Counter()
        for text, count in zip(self._reason_texts, counts, strict=True):
            total[text] += count
        return +total

    def changed_since(self, before: Commits) -> list[int]:
        """Shards that ``before`` had otherwise than they are committed now, or that are gone."""
        common, ours, theirs = np.intersect1d(
            self.shards, before.shards, assume_unique=True, return_indices=True
        )
        differ = (self.digests[ours] != before.digests[theirs]).any(axis=1)
        gone = np.setdiff1d(before.shards, self.shards, assume_unique=True)
        return [*common[differ].tolist(), *gone.tolist()]

    @cached_property
    def _reason_texts(self) -> tuple[str, ...]:
        return tuple(text for table in self._tables for text in table.texts.reasons)

    @cached_property
    def _rejects(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rejected rows (m,), ascending, and positions (m,) in ``_reason_texts``."""
        starts = self.shards * self._info.shard_rows
        rows, reasons, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for number, table in enumerate(self._tables):
            mine = self._table_of == number
            found, positions = table.rejected(self._place[mine], starts[mine])
            rows.append(found)
            reasons.append(positions.astype(np.int64) + first)
            first += len(table.texts.reasons)
        every = np.concatenate(rows)
        owned = np.isin(every // self._info.shard_rows, self.shards)
        if not owned.all() or not self._info.real_rows[every].all():
            raise CorruptCache("a packed commit record rejects a row that its shard does not have.")
        order = np.argsort(every, kind="stable")
        return every[order], np.concatenate(reasons)[order]

    def _gathered(self, column: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        values = np.empty((len(self), *shape), dtype)
        for number, table in enumerate(self._tables):
            mine = self._table_of == number
            values[mine] = getattr(table, column)[self._place[mine]]
        return values
