"""A committed shard opened for reading: its rows' places, and bytes straight into the batch.

zarr's own indexing reads shuffled rows at a few percent of the disk's speed, so a row of a local
shard is one ``preadv`` into its place in the batch, its checksum into a scratch buffer beside it.
The kernel copies page by page, though. Who waives the checksums gets rows that are in the page
cache from a map of the file instead; its pages count as resident memory of the process.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from ..format.shard import CRC_BYTES, decode_index, index_bytes, matches

PREFETCH_BYTES = 128 * 2**10
"""Linux takes no more of one hint than a device's largest request or its readahead."""


class BadRow(Exception):
    """The bytes of one row are not those that were written; the reader says which row it is."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.slot = slot


class OpenShard(Protocol):
    """One shard of n rows of b bytes."""

    def read(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        out: NDArray[np.uint8],
        *,
        check: bool,
    ) -> None:
        """Row ``slots[i]`` of the shard into ``out[positions[i]]`` (b,); BadRow where it fails."""

    def in_memory(self, slots: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        """Rows (b,) as they lie in memory, unchecked, to be copied at once; None: read it."""

    def read_all(self, num_rows: int) -> NDArray[np.uint8]:
        """The first ``num_rows`` rows, each followed by its checksum: (num_rows, b + 4)."""

    def prefetch(self) -> None:
        """Bring the whole shard nearer: all its rows will be read soon."""

    def release(self) -> None:
        """Keep nothing of the shard in memory any more."""


class LocalShard:
    """An open shard file; closed when nobody uses it any more."""

    def __init__(
        self, path: Path, shard_rows: int, row_bytes: int, committed_bytes: int, cure: str
    ) -> None:
        """``cure`` says in messages what mends a damaged shard."""
        self._cure = cure
        self._path, self._row_bytes, self._num_bytes = path, row_bytes, committed_bytes
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self._descriptor = -1
            raise CorruptCache(f"{path} is committed but missing. {cure}") from error
        size = os.fstat(self._descriptor).st_size
        if size != committed_bytes:
            raise CorruptCache(
                f"{path} has {size:,} bytes, its commit record says {committed_bytes:,}. {cure}"
            )
        tail = np.empty(min(index_bytes(shard_rows), size), np.uint8)
        read_fully(self._descriptor, tail, size - tail.size)
        self._offsets: list[int] = decode_index(
            tail, shard_rows, size, row_bytes, str(path), cure
        ).tolist()
        self._map: NDArray[np.uint8] | None = None

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        out: NDArray[np.uint8],
        *,
        check: bool,
    ) -> None:
        scratch = np.empty(CRC_BYTES, np.uint8)
        stored = scratch.view("<u4")
        descriptor, offsets, whole = self._descriptor, self._offsets, self._row_bytes + CRC_BYTES
        for slot, position in zip(slots, positions, strict=True):
            row, offset = out[position], offsets[slot]
            if offset < 0:
                raise BadRow(slot)
            if os.preadv(descriptor, [row.data, scratch.data], offset) != whole:
                self._read_again(row, scratch, slot)
            if check and not matches(row, int(stored[0])):
                raise BadRow(slot)

    def in_memory(self, slots: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        """Rows of a map of the file.

        A row's checksum is read first, without waiting for a disk. Through a map a row from the
        disk would come in pages of 4 KiB, and one of a file that was cut would end the process.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return [None] * len(slots)
        if self._map is None:
            whole = mmap.mmap(self._descriptor, self._num_bytes, prot=mmap.PROT_READ)
            self._map = np.frombuffer(whole, np.uint8)
        mapped, size, descriptor = self._map, self._row_bytes, self._descriptor
        checksum, found = [bytearray(CRC_BYTES)], []
        for slot in slots:
            offset = self._offsets[slot]
            try:
                there = os.preadv(descriptor, checksum, offset + size, os.RWF_NOWAIT) == CRC_BYTES
            except OSError:  # it would have to wait, or this file system cannot be asked
                there = False
            found.append(mapped[offset : offset + size] if there and offset >= 0 else None)
        return found

    def read_all(self, num_rows: int) -> NDArray[np.uint8]:
        stride = self._row_bytes + CRC_BYTES
        require_dense(self._offsets, num_rows, stride, str(self._path), self._cure)
        body = np.empty((num_rows, stride), np.uint8)
        try:
            read_fully(self._descriptor, body.reshape(-1), 0)
        except EOFError as error:
            raise BadRow(0) from error
        return body

    def prefetch(self) -> None:
        for offset in range(0, self._num_bytes, PREFETCH_BYTES):
            os.posix_fadvise(self._descriptor, offset, PREFETCH_BYTES, os.POSIX_FADV_WILLNEED)

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


def require_dense(offsets: Sequence[int], num_rows: int, stride: int, what: str, cure: str) -> None:
    """CorruptCache, with ``cure``, unless the first ``num_rows`` rows of ``what`` follow each other
    from the start."""
    if list(offsets[:num_rows]) != list(range(0, num_rows * stride, stride)):
        raise CorruptCache(f"{what} lacks rows it committed. {cure}")


def read_fully(descriptor: int, out: NDArray[np.uint8], offset: int) -> None:
    """Fill ``out`` (b,) from ``offset``; EOFError when the file ends before."""
    view = out.data
    while view.nbytes:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset:,}")
        view, offset = view[count:], offset + count
