"""What is known of every row's image, put together from the facts of shards.

n rows of the cache, s shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

from ..format.facts import COLUMNS, HAS_SHA256, HELD_OUT, ImageFacts, joined
from ..format.info import CacheInfo
from .fact_table import FactTable
from .record_table import place_of


class RowFacts:
    """Facts by row; what is not known is zeros. A column is put together when it is asked for."""

    def __init__(
        self, info: CacheInfo, tables: Sequence[FactTable], loose: Mapping[int, ImageFacts]
    ) -> None:
        """What is ``loose`` counts where a table has the same shard."""
        self._info, self._loose = info, loose
        shards = np.fromiter(loose, np.int64, len(loose))
        self._tables = [(table, _places(table, info, but=shards)) for table in tables]

    @property
    def heldout(self) -> Bool[np.ndarray, " n"]:
        """True where a row is held out."""
        return (self._column("flags") & HELD_OUT).astype(bool)

    @property
    def has_sha256(self) -> Bool[np.ndarray, " n"]:
        """True where the sha256 of a row's image is known."""
        return (self._column("flags") & HAS_SHA256).astype(bool)

    @property
    def sha256(self) -> UInt8[np.ndarray, "n 32"]:
        """Of each row's encoded image."""
        return self._column("sha256")

    @property
    def images(self) -> NDArray[np.bytes_]:
        """(n,) the sha256 of each row's image as one value, equal for equal images."""
        whole: NDArray[np.bytes_] = np.ascontiguousarray(self.sha256).view("S32").reshape(-1)
        return whole

    @property
    def digests(self) -> UInt8[np.ndarray, "s 32"]:
        """Digest of the facts of each shard; zeros where there are none."""
        digests = np.zeros((self._info.num_shards, 32), np.uint8)
        for table, places in self._tables:
            digests[table.shards[places]] = table.digests[places]
        for shard, facts in self._loose.items():
            digests[shard] = np.frombuffer(bytes.fromhex(facts.digest), np.uint8)
        return digests

    def others(
        self, shards: NDArray[np.int64], digests: UInt8[np.ndarray, "k 32"]
    ) -> NDArray[np.int64]:
        """Those of ``shards`` (k,) whose facts are missing or have another digest."""
        return shards[(self.digests[shards] != digests).any(axis=1)]

    def of_shard(self, shard: int) -> ImageFacts | None:
        """The facts of one shard; None where there are none."""
        if shard in self._loose:
            return self._loose[shard]
        for table, places in self._tables:
            place = place_of(table.shards, shard)
            if place is not None and place_of(places, place) is not None:
                return table.facts(place)
        return None

    def take(self, rows: NDArray[np.int64]) -> ImageFacts:
        """The facts of ``rows`` (m,), which have some, in this order."""
        if not rows.size:
            return ImageFacts.of(sha256=[], size=[], box=[], heldout=[])
        shards, slots = np.divmod(rows, self._info.shard_rows)
        order = np.argsort(shards, kind="stable")
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        parts = []
        for shard, of_shard in zip(
            shards[order[starts]].tolist(), np.split(slots[order], starts[1:]), strict=True
        ):
            facts = self.of_shard(shard)
            assert facts is not None, "only rows that were read have facts"
            parts.append(facts.take(of_shard))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return joined(parts).take(back)

    def _column(self, name: str) -> NDArray[np.uint8]:
        dtype, shape = COLUMNS[name]
        values = np.zeros((self._info.num_rows, *shape), dtype)
        for table, places in self._tables:
            table.spread(name, places, self._info.shard_rows, values)
        for shard, facts in self._loose.items():
            start = shard * self._info.shard_rows
            values[start : start + len(facts)] = getattr(facts, name)
        return values


def _places(table: FactTable, info: CacheInfo, *, but: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the table has shards that exist and are not among ``but``."""
    return np.flatnonzero(np.isin(table.shards, info.shard_numbers) & ~np.isin(table.shards, but))
