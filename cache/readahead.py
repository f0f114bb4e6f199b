"""Whole shards asked for before their rows are read.

In block order every row of a window of shards is read soon, in random order. Reading the rows one
by one would leave a disk idle between them, so a thread asks for the next window's shards from end
to end while this window's batches are made. Nothing is kept here: the shards wait in the page
cache, so a window's shards of every array, twice, should fit in free memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .order import WINDOW_SHARDS
from .reader import RowReader


class ReadAhead:
    """Tells readers which rows come soon; each shard is asked for once until it is forgotten."""

    def __init__(
        self,
        readers: Iterable[RowReader],
        *,
        shard_rows: int,
        window_shards: int = WINDOW_SHARDS,
    ) -> None:
        self._readers = tuple(readers)
        self._shard_rows = shard_rows
        self._remembered = 2 * window_shards
        self._asked: dict[int, None] = {}  # in the order they were asked for
        self._thread = ThreadPoolExecutor(1, "shards-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def expect(self, rows: NDArray[np.int64]) -> None:
        """The shards of ``rows`` (n,) will be read whole before long; returns at once."""
        for shard in dict.fromkeys((rows // self._shard_rows).tolist()):
            if shard in self._asked:
                continue
            self._asked[shard] = None
            if len(self._asked) > self._remembered:
                self._asked.pop(next(iter(self._asked)))
            for reader in self._readers:
                self._thread.submit(reader.prefetch_shard, shard)

    def close(self) -> None:
        """Ask for nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
