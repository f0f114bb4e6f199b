"""One file of a committed shard on an object store, read by ranges or kept near.

Rows lie one after another from the start (docs/format.md), so a row's place needs no request. Rows
that are near each other come in one request. Rows that will all be read soon are fetched together
before, a whole file as such, and are copied from memory until they are released.

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
    """A file of ``num_bytes``, as its commit record says."""

    def __init__(
        self, files: Ranges, relative: str, file_rows: int, row_bytes: int, num_bytes: int
    ) -> None:
        self._files, self._relative = files, relative
        self._file_rows, self._row_bytes, self._num_bytes = file_rows, row_bytes, num_bytes
        self._stride = row_bytes + CRC_BYTES
        self._near: dict[int, NDArray[np.uint8]] = {}
        """Rows with their checksums, (stride,), by slot."""
        self._fetching = Lock()

    def read(self, slots: Sequence[int], positions: Sequence[int], out: NDArray[np.uint8]) -> None:
        far = []
        for slot, position in zip(slots, positions, strict=True):
            row = self._near.get(slot)
            if row is None:
                far.append((slot, position))
            elif not self._copy(row, out[position]):
                self._again(slot, out[position])
        for first, last, places in self._ranges(far):
            self._take(self._rows(first, last), first, places, out)

    def read_row(self, slot: int, row: NDArray[np.uint8], checksum: memoryview) -> None:
        self.read([slot], [0], row[None])

    def prefetch(self, slots: range) -> None:
        with self._fetching:
            if self._near.keys() >= set(slots):
                return
            rest = self._num_bytes - index_bytes(self._file_rows)
            whole = slots.start == 0 and slots.stop * self._stride == rest
            rows = self._whole() if whole else self._rows(slots.start, slots.stop - 1)
            self._near |= zip(slots, rows, strict=False)

    def release(self, slots: range) -> None:
        with self._fetching:
            for slot in slots:
                self._near.pop(slot, None)

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
            if not self._copy(rows[slot - first], out[position]):
                self._again(slot, out[position])

    def _again(self, slot: int, out: NDArray[np.uint8]) -> None:
        """A row that did not match its checksum, perhaps only on its way; BadRow when it does not
        again."""
        if not self._copy(self._rows(slot, slot)[0], out):
            raise BadRow(slot)

    def _copy(self, row: NDArray[np.uint8], out: NDArray[np.uint8]) -> bool:
        """Copy a row (stride,); False when it does not match its checksum."""
        out[:] = row[: self._row_bytes]
        return matches(out, int(row[self._row_bytes :].view("<u4")[0]))

    def _ranges(
        self, places: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """(first slot, last slot, [(slot, position)]) of the requests that bring all rows of
        ``places``, (slot, position) each."""
        taken: list[tuple[int, int]] = []
        for slot, position in sorted(places):
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
        if stop > self._num_bytes - index_bytes(self._file_rows):
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
        tail = data[-index_bytes(self._file_rows) :]
        offsets = decode_rows(tail, self._file_rows, data.size, self._row_bytes, where)
        num_rows = int((offsets >= 0).sum())
        if not np.array_equal(offsets[:num_rows], np.arange(num_rows) * self._stride):
            raise CorruptCache(f"{where} lacks rows it committed.")
        return data[: num_rows * self._stride].reshape(num_rows, self._stride)

    def _missing(self) -> CorruptCache:
        return CorruptCache(f"{self._files.where(self._relative)} is committed but missing.")
