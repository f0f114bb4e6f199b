"""The facts of many shards as columns: what a pack stores.

k shards, N rows in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..format.columns import Columns, ascend_within
from ..format.facts import COLUMNS, ImageFacts
from ..format.info import CacheInfo
from .shard_table import ShardTable

KINDS: dict[str, tuple[str, int]] = {
    "shards": ("<i8", 1),
    "num_rows": ("<u4", 1),
    "digests": ("u1", 2),
    **{name: (dtype, 1 + len(shape)) for name, (dtype, shape) in COLUMNS.items()},
}
"""The type and the dimensions of each column."""


class FactTable(ShardTable):
    """Facts by ascending shard; ``digests`` are those of the facts."""

    @classmethod
    def of(cls, facts: Mapping[int, ImageFacts]) -> Self:
        """The table of facts by shard."""
        shards = sorted(facts)
        parts: Sequence[ImageFacts] = [facts[shard] for shard in shards]
        digests = b"".join(bytes.fromhex(part.digest) for part in parts)
        columns: dict[str, NDArray[Any]] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS
        }
        columns["shards"] = np.array(shards, np.int64)
        columns["num_rows"] = np.array([len(part) for part in parts], np.uint32)
        columns["digests"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        return cls(columns)

    @classmethod
    def of_columns(cls, content: Columns, info: CacheInfo, number: int) -> Self:
        """The table that the pack of a range of shards holds; CorruptCache for another range's, and
        for columns that do not fit one another or the cache."""
        content.require(KINDS)
        table = cls(content, content)
        k, num_rows = len(table), int(table.ends[-1])
        expected: dict[str, tuple[int, ...]] = {"shards": (k,), "num_rows": (k,)}
        expected |= {"digests": (k, 32)}
        expected |= {name: (num_rows, *shape) for name, (_, shape) in COLUMNS.items()}
        if content.shapes() != expected or not ascend_within(table.shards, info.pack_range(number)):
            raise content.damaged("its columns do not fit one another")
        _, here, there = np.intersect1d(table.shards, info.shard_numbers, return_indices=True)
        if (table.columns["num_rows"][here] != info.shard_sizes[there]).any():
            raise content.damaged("its shards have other rows than those of the cache")
        return table

    @classmethod
    def unchecked(cls, content: Columns) -> Self:
        """The table of a pack some of whose bytes may have changed; CorruptCache for a pack of
        something else."""
        content.require(KINDS)
        return cls({name: content.unchecked(name) for name in content}, content)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(k + 1,) where the rows of each shard begin and end."""
        return np.concatenate([[0], np.cumsum(self.columns["num_rows"], dtype=np.int64)])

    def facts(self, place: int) -> ImageFacts:
        """The facts of the shard at ``place``; CorruptCache unless they match their digest."""
        assert self.content is not None, "of a pack"
        start, stop = self.ends[place : place + 2].tolist()
        facts = ImageFacts.of_columns(
            {name: np.array(self.content.unchecked(name)[start:stop]) for name in COLUMNS}
        )
        self.require_digest(place, facts.digest)
        return facts

    def spread(
        self, name: str, places: NDArray[np.int64], shard_rows: int, out: NDArray[Any]
    ) -> None:
        """Put the rows of a column that belong to the shards at ``places`` into ``out``, which has
        one for each row of the cache."""
        assert self.content is not None, "of a pack"
        values = self.content.copied(name)  # not kept: a byte or more for each row
        starts, counts = self.shards * shard_rows, np.diff(self.ends)
        whole = len(places) == len(self) > 0
        if whole and (np.diff(starts) == counts[:-1]).all():  # they follow one another
            out[starts[0] : starts[0] + len(values)] = values
            return
        rows = np.arange(len(values)) + np.repeat(starts - self.ends[:-1], counts)
        wanted = np.repeat(np.isin(np.arange(len(self)), places), counts)
        out[rows[wanted]] = values[wanted]
