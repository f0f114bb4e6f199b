"""Reading rows of one array straight from its shard files.

zarr's own indexing reads shuffled rows at a few percent of the disk's speed, so a row is one
``preadv`` into its place in the batch, its checksum into a scratch buffer beside it. Only rows that
a commit record vouches for are read; anything else is an error naming the row, never a fill value.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import names
from .commit import CommitRecord
from .compressed import read_compressed
from .errors import CorruptCache, MissingRow
from .shard import CRC_BYTES, decode_index, index_bytes, matches

MAX_OPEN_SHARDS = 128
"""Open files per reader; the usual limit of a process is 1,024."""


class _OpenShard:
    """An open shard file and the offsets of its rows; closed when nobody uses it any more."""

    def __init__(self, path: Path, shard_rows: int, row_bytes: int, committed_bytes: int) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self.descriptor = -1
            raise CorruptCache(f"{path} is committed but missing. {_REPAIR}") from error
        size = os.fstat(self.descriptor).st_size
        if size != committed_bytes:
            raise CorruptCache(
                f"{path} has {size:,} bytes, its commit record says {committed_bytes:,}. {_REPAIR}"
            )
        tail = np.empty(min(index_bytes(shard_rows), size), np.uint8)
        read_fully(self.descriptor, tail, size - tail.size)
        self.offsets = decode_index(tail, shard_rows, size, row_bytes, str(path)).tolist()

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


_REPAIR = "Run `phistill verify` to see what else is damaged, then extract that shard again."


def read_fully(descriptor: int, out: NDArray[np.uint8], offset: int) -> None:
    """Fill ``out`` (b,) from ``offset``; EOFError when the file ends before."""
    view = out.data
    while view.nbytes:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset:,}")
        view, offset = view[count:], offset + count


class ArrayReader:
    """Rows of one kind of one owner: a teacher's patches, say, or the pixels.

    Reading is thread-safe. The reader sees the shards committed when it was made; a row that is
    not among them makes it look once more.
    """

    def __init__(
        self,
        root: Path,
        owner: str,
        kind: str,
        *,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        shard_rows: int,
        num_rows: int,
        removed: Sequence[tuple[int, int]] = (),
        compressed: bool = False,
        commits: Callable[[], Mapping[int, CommitRecord]],
    ) -> None:
        self.owner, self.kind = owner, kind
        self.row_shape, self.dtype = row_shape, dtype
        self.row_bytes = math.prod(row_shape) * dtype.itemsize
        self._root, self._shard_rows, self._num_rows = root, shard_rows, num_rows
        self._removed, self._commits, self._compressed = removed, commits, compressed
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = Lock()
        self._records: Mapping[int, CommitRecord] = {}
        self._readable: NDArray[np.bool_] = np.zeros(num_rows, bool)
        self.refresh()

    def refresh(self) -> None:
        """See the shards that were committed since."""
        records = self._commits()
        readable = np.zeros(self._num_rows, bool)
        for record in records.values():
            readable[record.start : record.start + record.num_rows] = record.accepted
        for start, stop in self._removed:
            readable[start:stop] = False
        self._records, self._readable = records, readable

    def read(
        self, rows: NDArray[np.int64], out: NDArray[Any] | None = None, *, check: bool = True
    ) -> NDArray[Any]:
        """The values (n, *row_shape) of ``rows`` (n,), in their order.

        ``out`` is filled when given (C-contiguous, right shape and dtype). ``check=False`` leaves
        out the crc32c of each row. Raises MissingRow for a row that is not committed or was
        rejected, CorruptCache naming teacher, shard and row when the bytes are not those written.
        """
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
        if self._compressed:
            return self._through_zarr(rows, out)
        flat = out.reshape(rows.size, -1).view(np.uint8)
        if not np.shares_memory(flat, out):
            raise ValueError("out must be C-contiguous.")
        shards, slots = np.divmod(rows, self._shard_rows)
        order = np.argsort(shards, kind="stable")
        scratch = np.empty(CRC_BYTES, np.uint8)
        stored = scratch.view("<u4")
        current = -1
        for position, shard, slot in zip(
            order.tolist(), shards[order].tolist(), slots[order].tolist(), strict=True
        ):
            if shard != current:
                opened, current = self._shard(shard), shard
            row = flat[position]
            count = os.preadv(opened.descriptor, [row.data, scratch.data], opened.offsets[slot])
            if count != self.row_bytes + CRC_BYTES:
                self._read_again(opened, row, scratch, opened.offsets[slot], shard, slot)
            if check and not matches(row, int(stored[0])):
                raise self._damaged(shard, slot)
        return out

    def read_shard(self, shard: int, *, check: bool = True) -> NDArray[Any]:
        """All rows (n, *row_shape) of a committed shard in one read.

        The values of rejected rows mean nothing; leave them out with the record's ``accepted``.
        """
        record = self._records.get(shard)
        if record is None:
            self.refresh()
            record = self._records.get(shard)
        if record is None:
            raise MissingRow(f"shard {shard} of {self._what} is not committed.")
        if self._compressed:
            stored_rows = np.arange(record.start, record.start + record.num_rows)
            shape = (record.num_rows, *self.row_shape)
            return self._through_zarr(stored_rows, np.empty(shape, self.dtype))
        opened = self._shard(shard)
        stride = self.row_bytes + CRC_BYTES
        body = np.empty((record.num_rows, stride), np.uint8)
        if opened.offsets[: record.num_rows] != list(range(0, record.num_rows * stride, stride)):
            raise CorruptCache(f"shard {shard} of {self._what} lacks rows it committed. {_REPAIR}")
        try:
            read_fully(opened.descriptor, body.reshape(-1), 0)
        except EOFError as error:
            raise self._damaged(shard, 0) from error
        values = np.ascontiguousarray(body[:, : self.row_bytes])
        if check:
            stored = np.ascontiguousarray(body[:, self.row_bytes :]).view("<u4").reshape(-1)
            for slot, checksum in enumerate(stored.tolist()):
                if not matches(values[slot], checksum):
                    raise self._damaged(shard, slot)
        return values.view(self.dtype).reshape(record.num_rows, *self.row_shape)

    @property
    def _what(self) -> str:
        return self.owner if self.owner == names.PIXELS else f"teacher {self.owner}, {self.kind}"

    def _require(self, rows: NDArray[np.int64]) -> None:
        if rows.size and not (rows.min() >= 0 and rows.max() < self._num_rows):
            bad = rows[(rows < 0) | (rows >= self._num_rows)][0]
            raise MissingRow(f"row {bad} does not exist; the cache has {self._num_rows:,} rows.")
        if not self._readable[rows].all():
            self.refresh()
        missing = rows[~self._readable[rows]]
        if missing.size:
            row = int(missing[0])
            record = self._records.get(row // self._shard_rows)
            reason = record.reasons.get(row - record.start) if record else None
            why = f"was rejected ({reason})" if reason else "is not committed"
            if any(start <= row < stop for start, stop in self._removed):
                why = "was removed"
            raise MissingRow(
                f"row {row} of {self._what} {why}; {missing.size} of {rows.size} rows asked for "
                "cannot be read. Choose rows with Cache.rows(), or finish with `phistill extract`."
            )

    def _through_zarr(self, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Rows of a compressed array; zarr's own errors become ours, naming the row."""
        path = self._root / names.array(self.owner, self.kind)
        for shard in np.unique(rows // self._shard_rows).tolist():
            relative = names.shard(self.owner, self.kind, shard, 1 + len(self.row_shape))
            if not (self._root / relative).exists():  # zarr would give fill values
                raise CorruptCache(f"{self._root / relative} is committed but missing. {_REPAIR}")
        try:
            read_compressed(path, rows, out)
        except Exception as error:  # codecs raise nearly anything on damaged bytes
            if rows.size > 1:
                for position in range(rows.size):
                    self._through_zarr(rows[position : position + 1], out[position : position + 1])
            raise self._damaged(*divmod(int(rows[0]), self._shard_rows)) from error
        return out

    def _shard(self, shard: int) -> _OpenShard:
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
                return opened
            relative = names.shard(self.owner, self.kind, shard, 1 + len(self.row_shape))
            size, _ = self._records[shard].files.get(relative, (-1, ""))
            opened = _OpenShard(self._root / relative, self._shard_rows, self.row_bytes, size)
            self._open[shard] = opened
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return opened

    def _read_again(
        self,
        opened: _OpenShard,
        row: NDArray[np.uint8],
        scratch: NDArray[np.uint8],
        offset: int,
        shard: int,
        slot: int,
    ) -> None:
        """A read came back short: a signal, a network file system, or a hole in the shard."""
        if offset < 0:
            raise self._damaged(shard, slot)
        try:
            read_fully(opened.descriptor, row, offset)
            read_fully(opened.descriptor, scratch, offset + self.row_bytes)
        except EOFError as error:
            raise self._damaged(shard, slot) from error

    def _damaged(self, shard: int, slot: int) -> CorruptCache:
        row = shard * self._shard_rows + slot
        return CorruptCache(
            f"{self._what}: row {row} (shard {shard}, row {slot} of it) does not match its "
            f"checksum. {_REPAIR}"
        )
