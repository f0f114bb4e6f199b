"""Reading rows of one array straight from its shard files.

Only rows that a commit record vouches for are read; anything else is an error naming the row, never
a fill value. How bytes come out of one shard is the business of ``storage``.
"""

from __future__ import annotations

import weakref
from array import array
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phistill.errors import (
    CorruptCache,
    MissingRow,
    PhistillError,
    StoreError,
    remedy,
    repair_text,
)

from .committed.commits import Commits
from .format import names
from .format.arrays import ArrayLayout
from .format.info import CacheInfo
from .format.shard import CRC_BYTES
from .order import WINDOW_BLOCKS
from .rows import Mask, readable_rows
from .storage.files import BadRow, Files, OpenShard
from .storage.shard_pool import POOL

MAX_BLOCKS = 2 * WINDOW_BLOCKS
"""Blocks of rows per reader that are kept near, those of this window and of the next."""

_KEYS = count()
"""One for each reader of this process."""

_Part = tuple[int, list[int], list[int]]
"""A file, rows of it by their slots, and their places in the batch."""


def _by_file(
    files: NDArray[np.int64], slots: NDArray[np.int64], order: NDArray[np.int64]
) -> list[_Part]:
    """The places of ``order``, in which equal files are neighbours, file by file."""
    starts = np.flatnonzero(np.diff(files[order], prepend=-1)).tolist()
    in_order, places = slots[order].tolist(), order.tolist()
    return [
        (int(files[places[start]]), in_order[start:end], places[start:end])
        for start, end in zip(starts, [*starts[1:], len(places)], strict=False)
    ]


class RowReader(Protocol):
    """Rows of one array by their numbers, as stored or decoded."""

    owner: str
    kind: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    row_bytes: int
    """Of a row as it is given."""

    def read(self, rows: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values (n, *row_shape) of ``rows`` (n,), in their order; into ``out`` when given."""

    def refresh(self) -> None:
        """See what was committed since."""

    def prefetch(self, block: range) -> None:
        """Bring rows nearer that will all be read soon; never an error."""


class ArrayReader:
    """Rows of one kind of one owner: a teacher's patches, say, or the pixels.

    Row r is row r % file_rows of file r // file_rows.

    Reading is thread-safe. The reader sees the shards committed when it was made; a row that is
    not among them makes it look once more.
    """

    def __init__(
        self,
        files: Files,
        layout: ArrayLayout,
        *,
        look: Callable[[bool], tuple[CacheInfo, Commits]],
    ) -> None:
        """``look`` gives what is known of the cache: settings, and the owner's records; ``True``
        makes it look again where others may have written."""
        self.owner, self.kind = layout.owner, layout.kind
        self.row_shape, self.dtype = layout.row_shape, layout.dtype
        self.row_bytes, self.file_rows = layout.row_bytes, layout.file_rows
        self._layout = layout
        self._files, self._look = files, look
        self._key = next(_KEYS)
        self._held = POOL.held(self._key)
        weakref.finalize(self, POOL.retire, self._key)
        self._near: OrderedDict[range, dict[int, range]] = OrderedDict()
        """Blocks that were asked for, and the slots of each file that they are."""
        self._whole: dict[int, OpenShard] = {}
        """The files of those blocks."""
        self._lock = Lock()
        self._info, self._records = look(False)
        self._readable: Mask = readable_rows(self._info, self._records)
        self._files_per_shard = self._info.shard_rows // self.file_rows
        self._sizes = array("q", bytes(8 * self._num_files(self._info)))
        """Bytes of the files that were found whole by this process, and 0 of all others."""

    def refresh(self) -> None:
        """See the shards that were committed, and the rows that came and went, since."""
        info, records = self._look(True)
        readable = readable_rows(info, records)
        changed, per_shard = records.changed_since(self._records), self._files_per_shard
        written_anew = {n for s in changed for n in range(s * per_shard, (s + 1) * per_shard)}
        with self._lock:
            POOL.forget(self._key, written_anew)
            for block in [b for b, files in self._near.items() if written_anew & files.keys()]:
                self._let_go(block)
            sizes = array("q", bytes(8 * self._num_files(info)))
            kept = min(len(sizes), len(self._sizes))
            sizes[:kept] = self._sizes[:kept]
            for file in written_anew & set(range(kept)):
                sizes[file] = 0
            self._sizes = sizes
            self._info, self._records, self._readable = info, records, readable

    def read(self, rows: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values (n, *row_shape) of ``rows`` (n,), in their order.

        ``out`` is filled when given (C-contiguous, right shape and dtype). Each row is checked
        against its crc32c. Raises MissingRow for a row that is not committed or was rejected,
        CorruptCache naming teacher, shard and row when the bytes are not those written.
        """
        rows = np.asarray(rows)
        if rows.size and rows.dtype.kind not in "iu":
            raise ValueError(f"rows are {rows.dtype}, must be whole numbers.")
        rows = np.ascontiguousarray(rows, np.int64)
        self._require(rows)
        if not rows.size:
            return np.empty((0, *self.row_shape), self.dtype) if out is None else out
        if out is None:
            out = np.empty((rows.size, *self.row_shape), self.dtype)
        elif out.shape != (rows.size, *self.row_shape) or out.dtype != self.dtype:
            raise ValueError(
                f"out is {out.dtype} {out.shape}, must be {self.dtype} "
                f"{(rows.size, *self.row_shape)}."
            )
        if self._info.compression:
            return self._through_zarr(rows, out)
        flat = out.reshape(rows.size, -1).view(np.uint8)
        if not np.shares_memory(flat, out):
            raise ValueError("out must be C-contiguous.")
        files, slots = np.divmod(rows, self.file_rows)
        if not self._files.joins_rows:
            self._read_each(files.tolist(), slots.tolist(), flat)
            return out
        order = np.argsort(files, kind="stable")

        def read_one(part: _Part) -> None:
            file, in_file, places = part
            try:
                self._file(file).read(in_file, places, flat)
            except BadRow as error:
                raise self._damaged(file * self.file_rows + error.slot) from error

        self._files.each(read_one, _by_file(files, slots, order))
        return out

    def _read_each(self, files: list[int], slots: list[int], out: NDArray[np.uint8]) -> None:
        """A row at a time: of thousands of files a batch has hardly two rows of one."""
        checksum = memoryview(bytearray(CRC_BYTES))
        find = self._file
        for place, (file, slot) in enumerate(zip(files, slots, strict=True)):
            try:
                find(file).read_row(slot, out[place], checksum)
            except BadRow as error:
                raise self._damaged(file * self.file_rows + slot) from error

    def prefetch(self, block: range) -> None:
        """Bring rows nearer that will all be read soon; a hint, so never an error.

        On a local disk they are read into the page cache, from an object store into memory: the
        last ``MAX_BLOCKS`` that were asked for stay there.
        """
        shard = block.start // self._info.shard_rows
        if shard not in self._records or self._info.compression:
            return
        stop = min(block.stop, self._info.shard_range(shard)[1])
        try:
            slots = self._slots(block.start, stop)
            opened = {file: self._file(file) for file in slots}
            for file, of_file in slots.items():
                opened[file].prefetch(of_file)
        except (PhistillError, OSError, BadRow):
            return  # whoever reads the row says what is wrong
        with self._lock:
            self._whole |= opened
            self._near[block] = slots
            self._near.move_to_end(block)
            if len(self._near) > MAX_BLOCKS:
                self._let_go(next(iter(self._near)))

    def _slots(self, start: int, stop: int) -> dict[int, range]:
        """Files that hold rows [start, stop), and the slots that they have in each."""
        return {
            file: range(max(start - first, 0), min(stop - first, self.file_rows))
            for file in self._layout.files(start, stop)
            for first in [file * self.file_rows]
        }

    def _let_go(self, block: range) -> None:
        """Keep a block near no more; the lock is held."""
        for file, slots in self._near.pop(block).items():
            self._whole[file].release(slots)
            if not any(file in others for others in self._near.values()):
                del self._whole[file]

    def _num_files(self, info: CacheInfo) -> int:
        return info.num_shards * self._files_per_shard

    @property
    def _what(self) -> str:
        return self.owner if self.owner == names.PIXELS else f"teacher {self.owner}, {self.kind}"

    def _require(self, rows: NDArray[np.int64]) -> None:
        if not self._all_readable(rows):
            self.refresh()
        if self._all_readable(rows):
            return
        info, exists = self._info, (rows >= 0) & (rows < self._readable.size)
        if not exists.all():
            raise MissingRow(
                f"row {rows[~exists][0]} does not exist; the cache has {info.num_rows:,} rows."
            )
        missing = rows[~self._readable[rows]]
        row = int(missing[0])
        reason = self._records.reason(row)
        why = f"was rejected ({reason})" if reason else "is not committed"
        if any(start <= row < stop for start, stop in info.removed):
            why = "was removed"
        raise MissingRow(
            f"row {row} of {self._what} {why}; {missing.size} of {rows.size} rows asked for "
            "cannot be read. Choose rows with Cache.rows(), or finish with `phistill extract`."
        )

    def _all_readable(self, rows: NDArray[np.int64]) -> bool:
        if not rows.size:
            return True
        readable = self._readable
        inside = rows.min() >= 0 and rows.max() < readable.size
        return bool(inside and readable[rows].all())

    def _through_zarr(self, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Rows of a compressed array; zarr's own errors become ours, naming the row."""
        for file in np.unique(rows // self.file_rows).tolist():
            relative = self._layout.path(file)
            if not self._files.exists(relative):  # zarr would give fill values
                where = self._files.where(relative)
                raise CorruptCache(
                    f"{where} is committed but missing. {repair_text(self._files.location)}"
                )
        try:
            self._files.read_compressed(names.array(self.owner, self.kind), rows, out)
        except StoreError:
            raise
        except Exception as error:  # codecs raise nearly anything on damaged bytes
            if rows.size > 1:
                for position in range(rows.size):
                    self._through_zarr(rows[position : position + 1], out[position : position + 1])
            raise self._damaged(int(rows[0])) from error
        return out

    def _file(self, file: int) -> OpenShard:
        opened = self._whole.get(file) or self._held.get(file)
        if opened is None:
            try:
                opened = POOL.open(self._key, file, self._open)
            except CorruptCache:
                with remedy(repair_text(self._files.location), CorruptCache):
                    raise
        return opened

    def _open(self, file: int) -> OpenShard:
        relative = self._layout.path(file)
        known = self._sizes[file]
        shard = file // self._files_per_shard
        size = known or self._records.file_bytes(shard).get(relative, -1)
        opened = self._files.open_shard(
            relative,
            file_rows=self.file_rows,
            row_bytes=self.row_bytes,
            num_bytes=size,
            checked=bool(known),
        )
        self._sizes[file] = size
        return opened

    def _damaged(self, row: int) -> CorruptCache:
        shard, slot = divmod(row, self._info.shard_rows)
        return CorruptCache(
            f"{self._what}: row {row} (shard {shard}, row {slot} of it) does not match its "
            f"checksum. {repair_text(self._files.location)}"
        )
