"""Blocks of rows asked for before their rows are read.

In block order every row of a window of blocks is read soon, in random order. Reading the rows one
by one would leave a disk idle between them, so a thread asks for the next window's blocks from end
to end while this window's batches are made. Nothing is kept here: the blocks wait in the page
cache, so a window's blocks of every array, twice, should fit in free memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .order import WINDOW_BLOCKS
from .reader import RowReader


class ReadAhead:
    """Tells readers which rows come soon; each block is asked for once until it is forgotten."""

    def __init__(
        self,
        readers: Iterable[RowReader],
        *,
        block_rows: int,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        self._readers = tuple(readers)
        self._block_rows = block_rows
        self._remembered = 2 * window_blocks
        self._asked: dict[int, None] = {}  # in the order they were asked for
        self._thread = ThreadPoolExecutor(1, "blocks-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def expect(self, rows: NDArray[np.int64]) -> None:
        """The blocks of ``rows`` (n,) will be read whole before long; returns at once."""
        for number in dict.fromkeys((rows // self._block_rows).tolist()):
            if number in self._asked:
                continue
            self._asked[number] = None
            if len(self._asked) > self._remembered:
                self._asked.pop(next(iter(self._asked)))
            block = range(number * self._block_rows, (number + 1) * self._block_rows)
            for reader in self._readers:
                self._thread.submit(reader.prefetch, block)

    def close(self) -> None:
        """Ask for nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
