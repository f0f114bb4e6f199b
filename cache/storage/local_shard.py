"""A committed shard opened for reading: its rows' places, and bytes straight into the batch.

zarr's own indexing reads shuffled rows at a few percent of the disk's speed, so a row of a local
shard is one ``preadv`` into its place in the batch, its checksum into a scratch buffer beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache, StoreError

from ..format.shard import CRC_BYTES, decode_rows, index_bytes, matches
from .files import BadRow
from .limits import is_out_of_files
from .positional import open_to_read, preadv, will_need

PREFETCH_BYTES = 128 * 2**10
"""Linux takes no more of one hint than a device's largest request or its readahead."""


class LocalShard:
    """An open shard file; closed when nobody uses it any more."""

    _descriptor = -1

    def __init__(self, path: Path, shard_rows: int, row_bytes: int, committed_bytes: int) -> None:
        self._row_bytes, self._num_bytes = row_bytes, committed_bytes
        try:
            self._descriptor = open_to_read(path)
        except FileNotFoundError as error:
            raise CorruptCache(f"{path} is committed but missing.") from error
        except OSError as error:
            if is_out_of_files(error):  # for who can close some
                raise
            raise StoreError(f"{path} cannot be opened: {error.strerror or error}.") from error
        size = os.fstat(self._descriptor).st_size
        if size != committed_bytes:
            raise CorruptCache(
                f"{path} has {size:,} bytes, its commit record says {committed_bytes:,}."
            )
        tail = np.empty(min(index_bytes(shard_rows), size), np.uint8)
        read_fully(self._descriptor, tail, size - tail.size)
        offsets = decode_rows(tail, shard_rows, size, row_bytes, str(path))
        self._offsets: list[int] = offsets.tolist()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, slots: Sequence[int], positions: Sequence[int], out: NDArray[np.uint8]) -> None:
        scratch = np.empty(CRC_BYTES, np.uint8)
        stored = scratch.view("<u4")
        descriptor, offsets, whole = self._descriptor, self._offsets, self._row_bytes + CRC_BYTES
        for slot, position in zip(slots, positions, strict=True):
            row, offset = out[position], offsets[slot]
            if offset < 0:
                raise BadRow(slot)
            if preadv(descriptor, [row.data, scratch.data], offset) != whole:
                self._read_again(row, scratch, slot)
            if not matches(row, int(stored[0])):
                raise BadRow(slot)

    def prefetch(self) -> None:
        for offset in range(0, self._num_bytes, PREFETCH_BYTES):
            will_need(self._descriptor, offset, PREFETCH_BYTES)

    def release(self) -> None:
        return  # the page cache is the kernel's

    def _read_again(self, row: NDArray[np.uint8], scratch: NDArray[np.uint8], slot: int) -> None:
        """A read came back short: a signal, a network file system, or a file that was cut."""
        offset = self._offsets[slot]
        try:
            read_fully(self._descriptor, row, offset)
            read_fully(self._descriptor, scratch, offset + self._row_bytes)
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
