"""One committed shard on an object store, read by ranges or kept whole.

Rows lie one after another from the start (docs/format.md), so a row's place needs no request. Rows
that are near each other come in one request. A shard that will be read from end to end is fetched
whole before, and its rows are copied from memory until it is released.

n rows of b bytes, stride b + 4 with the checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from ...format.shard import CRC_BYTES, decode_rows, index_bytes, matches
from ..files import BadRow

NEAR_BYTES = 2**18
"""A gap below this is read along: it costs less than the time to another answer (about 30 ms)."""
MAX_RANGE_BYTES = 2**24


class Ranges(Protocol):
    """What a shard needs of its store."""

    def where(self, relative: str) -> str: ...

    def read_range(
        self, relative: str, start: int, stop: int, num_bytes: int
    ) -> NDArray[np.uint8]: ...

    def read_whole(self, relative: str, num_bytes: int) -> NDArray[np.uint8]: ...


class ObjectShard:
    """A shard of ``num_bytes``, as its commit record says."""

    def __init__(
        self, files: Ranges, relative: str, shard_rows: int, row_bytes: int, num_bytes: int
    ) -> None:
        self._files, self._relative = files, relative
        self._shard_rows, self._row_bytes, self._num_bytes = shard_rows, row_bytes, num_bytes
        self._stride = row_bytes + CRC_BYTES
        self._body: NDArray[np.uint8] | None = None
        self._fetching = Lock()

    def read(self, slots: Sequence[int], positions: Sequence[int], out: NDArray[np.uint8]) -> None:
        body = self._body
        if body is not None:
            self._take(body, 0, zip(slots, positions, strict=True), out)
            return
        for first, last, places in self._ranges(slots, positions):
            self._take(self._rows(first, last), first, places, out)

    def read_row(self, slot: int, row: NDArray[np.uint8], checksum: memoryview) -> None:
        self.read([slot], [0], row[None])

    def prefetch(self) -> None:
        with self._fetching:
            if self._body is None:
                self._body = self._whole()

    def release(self) -> None:
        self._body = None

    def _take(
        self,
        rows: NDArray[np.uint8],
        first: int,
        places: Iterable[tuple[int, int]],
        out: NDArray[np.uint8],
    ) -> None:
        """Copy (slot, position) from ``rows`` (m, stride), of which the first is slot ``first``."""
        for slot, position in places:
            if slot - first >= len(rows):
                raise BadRow(slot)
            if self._copy(rows[slot - first], out[position]):
                continue
            if not self._copy(self._rows(slot, slot)[0], out[position]):  # not only on its way
                raise BadRow(slot)

    def _copy(self, row: NDArray[np.uint8], out: NDArray[np.uint8]) -> bool:
        """Copy a row (stride,); False when it does not match its checksum."""
        out[:] = row[: self._row_bytes]
        return matches(out, int(row[self._row_bytes :].view("<u4")[0]))

    def _ranges(
        self, slots: Sequence[int], positions: Sequence[int]
    ) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """(first slot, last slot, [(slot, position)]) of the requests that bring all rows."""
        places = sorted(zip(slots, positions, strict=True))
        taken: list[tuple[int, int]] = []
        for slot, position in places:
            if taken:
                gap = (slot - taken[-1][0] - 1) * self._stride
                total = (slot - taken[0][0] + 1) * self._stride
                if gap > NEAR_BYTES or total > MAX_RANGE_BYTES:
                    yield taken[0][0], taken[-1][0], taken
                    taken = []
            taken.append((slot, position))
        if taken:
            yield taken[0][0], taken[-1][0], taken

    def _rows(self, first: int, last: int) -> NDArray[np.uint8]:
        """Rows ``first`` to ``last`` with their checksums: (last - first + 1, stride)."""
        start, stop = first * self._stride, (last + 1) * self._stride
        if stop > self._num_bytes - index_bytes(self._shard_rows):
            raise BadRow(last)
        try:
            data = self._files.read_range(self._relative, start, stop, self._num_bytes)
        except FileNotFoundError as error:
            raise self._missing() from error
        return data.reshape(-1, self._stride)

    def _whole(self) -> NDArray[np.uint8]:
        """Every row with its checksum, (n, stride), once the shard's index agrees."""
        where = self._files.where(self._relative)
        try:
            data = self._files.read_whole(self._relative, self._num_bytes)
        except FileNotFoundError as error:
            raise self._missing() from error
        tail = data[-index_bytes(self._shard_rows) :]
        offsets = decode_rows(tail, self._shard_rows, data.size, self._row_bytes, where)
        num_rows = int((offsets >= 0).sum())
        if not np.array_equal(offsets[:num_rows], np.arange(num_rows) * self._stride):
            raise CorruptCache(f"{where} lacks rows it committed.")
        return data[: num_rows * self._stride].reshape(num_rows, self._stride)

    def _missing(self) -> CorruptCache:
        return CorruptCache(f"{self._files.where(self._relative)} is committed but missing.")
