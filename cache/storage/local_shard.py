"""A file of a committed shard opened for reading: bytes straight into the batch.

zarr's own indexing reads shuffled rows at a few percent of the disk's speed, so a row of a local
shard is one ``preadv`` into its place in the batch, its checksum into a scratch buffer beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache, StoreError

from ..format.shard import CRC_BYTES, decode_rows, encode_index, index_bytes, matches
from .files import BadRow
from .limits import is_out_of_files
from .positional import open_to_read, preadv, will_need

PREFETCH_BYTES = 128 * 2**10
"""Linux takes no more of one hint than a device's largest request or its readahead."""


class LocalShard:
    """An open shard file; closed when nobody uses it any more.

    Its rows lie one after another (docs/format.md), so a row's place is arithmetic. That the file
    is as it must be is looked at once, by ``require_whole``; a row carries its own checksum.
    """

    __slots__ = ("_descriptor", "_num_bytes", "_row_bytes")

    def __init__(self, path: str, row_bytes: int, num_bytes: int) -> None:
        self._descriptor = -1
        self._row_bytes, self._num_bytes = row_bytes, num_bytes
        try:
            self._descriptor = open_to_read(path)
        except FileNotFoundError as error:
            raise CorruptCache(f"{path} is committed but missing.") from error
        except OSError as error:
            if is_out_of_files(error):  # for who can close some
                raise
            raise StoreError(f"{path} cannot be opened: {error.strerror or error}.") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def require_whole(self, path: str, file_rows: int) -> None:
        """CorruptCache naming ``path`` unless size and index are those of the committed rows."""
        size = os.fstat(self._descriptor).st_size
        if size != self._num_bytes:
            raise CorruptCache(
                f"{path} has {size:,} bytes, its commit record says {self._num_bytes:,}."
            )
        tail = np.empty(min(index_bytes(file_rows), size), np.uint8)
        read_fully(self._descriptor, tail, size - tail.size)
        num_rows, rest = divmod(size - tail.size, self._row_bytes + CRC_BYTES)
        if rest or tail.tobytes() != encode_index(num_rows, file_rows, self._row_bytes):
            decode_rows(tail, file_rows, size, self._row_bytes, path)  # says what is wrong
            raise CorruptCache(f"{path}: the shard index is not that of its rows.")

    def read(self, slots: Sequence[int], positions: Sequence[int], out: NDArray[np.uint8]) -> None:
        checksum = memoryview(bytearray(CRC_BYTES))
        for slot, position in zip(slots, positions, strict=True):
            self.read_row(slot, out[position], checksum)

    def read_row(self, slot: int, row: NDArray[np.uint8], checksum: memoryview) -> None:
        whole = self._row_bytes + CRC_BYTES
        if preadv(self._descriptor, [row.data, checksum], slot * whole) != whole:
            self._read_again(row, checksum, slot)
        if not matches(row, int.from_bytes(checksum, "little")):
            raise BadRow(slot)

    def prefetch(self, slots: range) -> None:
        whole = self._row_bytes + CRC_BYTES
        for offset in range(slots.start * whole, slots.stop * whole, PREFETCH_BYTES):
            will_need(self._descriptor, offset, PREFETCH_BYTES)

    def release(self, slots: range) -> None:
        return  # the page cache is the kernel's

    def _read_again(self, row: NDArray[np.uint8], checksum: memoryview, slot: int) -> None:
        """A read came back short: a signal, a network file system, or a file that was cut."""
        offset = slot * (self._row_bytes + CRC_BYTES)
        try:
            read_fully(self._descriptor, row, offset)
            stored = np.frombuffer(checksum, np.uint8)
            read_fully(self._descriptor, stored, offset + self._row_bytes)
        except EOFError as error:
            raise BadRow(slot) from error


def read_fully(descriptor: int, out: NDArray[np.uint8], offset: int) -> None:
    """Fill ``out`` (b,) from ``offset``; EOFError when the file ends before."""
    view = out.data
    while view.nbytes:
        count = preadv(descriptor, [view], offset)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset:,}")
        view, offset = view[count:], offset + count
