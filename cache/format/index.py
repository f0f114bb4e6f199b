"""The tables of a cache's rows: a parquet file per segment, written once, read by row group.

The footer carries the end and the sha256 of every row group, and the segment the sha256 of the
footer: a row group can be read alone, and a changed byte is noticed in what is read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from .columns import Bytes
from .info import Segment

INDEX_COLUMNS = ("row", "id", "view", "uri", "offset", "length")
"""Columns every index has; ``label`` and ``split`` may follow."""

GROUP_ROWS = 2**14
"""Of a row group, or those of a shard where it has more."""
MAX_KEPT_GROUPS = 4
"""Read tables of row groups that a file keeps: rows are asked for in order, shard by shard."""

_KEY = b"phistill"
_TAIL_BYTES = 8
"""Behind the footer: its length and parquet's mark."""


def encode_index(index: pa.Table, *, start: int, shard_rows: int) -> tuple[bytes, Segment]:
    """A segment's table (INDEX_COLUMNS) as parquet, and the segment."""
    if missing := set(INDEX_COLUMNS) - set(index.column_names):
        raise ValueError(f"the index lacks the columns {sorted(missing)}.")
    rows = index["row"].to_numpy()
    if not np.array_equal(rows, np.arange(start, start + index.num_rows)):
        raise ValueError(f"the index must list the rows {start}.. in order.")
    index = index.replace_schema_metadata(None)
    file = io.BytesIO()
    group_rows, ends = max(GROUP_ROWS, shard_rows), []
    with pq.ParquetWriter(file, index.schema, compression="zstd") as writer:
        for first in range(0, index.num_rows, group_rows):
            writer.write_table(index.slice(first, group_rows), row_group_size=group_rows)
            ends.append(file.tell())
        data = file.getvalue()
        digests = [
            hashlib.sha256(data[begin:end]).hexdigest()
            for begin, end in zip([0, *ends], ends, strict=False)
        ]
        about = json.dumps({"ends": ends, "sha256": digests})
        writer.add_key_value_metadata({_KEY.decode(): about})
    data = file.getvalue()
    sha256 = hashlib.sha256(data[ends[-1] :]).hexdigest()
    return data, Segment(start=start, num_rows=index.num_rows, index_sha256=sha256)


class IndexFile:
    """The table of a segment. CorruptCache naming ``where`` for what is not as it was written."""

    def __init__(self, content: Bytes, segment: Segment, where: str) -> None:
        self._where, self._bytes = where, _Window(content)
        size = len(content)
        tail = bytes(content[max(0, size - _TAIL_BYTES) : size])
        start = size - _TAIL_BYTES - int.from_bytes(tail[:4], "little")
        footer = content[start:size] if 0 < start < size else content[0:0]
        if hashlib.sha256(footer.tobytes()).hexdigest() != segment.index_sha256:
            raise CorruptCache(f"{where} is not the index the cache was made with.")
        self._bytes.add(start, footer)
        self._file = pq.ParquetFile(pa.PythonFile(self._bytes, mode="r"), pre_buffer=False)
        metadata = self._file.metadata
        about = json.loads(metadata.metadata[_KEY])
        self._ends: list[int] = about["ends"]
        self._digests: list[str] = about["sha256"]
        counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        self._first_lines = np.concatenate([[0], np.cumsum(counts)])
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of the table."""
        return tuple(self._file.schema_arrow.names)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """All lines."""
        return pa.concat_tables([self._group(number, columns) for number in range(len(self._ends))])

    def lines(self, lines: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The lines at ``lines`` (n,), in this order; only their row groups are read."""
        groups = np.searchsorted(self._first_lines, lines, side="right") - 1
        numbers, inverse = np.unique(groups, return_inverse=True)
        if not numbers.size:
            schema = self._file.schema_arrow.remove_metadata()
            return schema.empty_table().select(list(columns))
        kept = [self._group(int(number), columns) for number in numbers]
        firsts = np.concatenate([[0], np.cumsum([len(table) for table in kept])[:-1]])
        places = lines - self._first_lines[groups] + firsts[inverse]
        first, last = int(places.min()), int(places.max())
        table = pa.concat_tables(kept)
        if np.array_equal(places, np.arange(first, last + 1)):
            return table.slice(first, len(places))
        return table.take(pa.array(places))

    def _group(self, number: int, columns: Sequence[str]) -> pa.Table:
        key = (number, tuple(columns))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            begin, end = ([0, *self._ends])[number : number + 2]
            content = self._bytes.fetch(begin, end)
            if hashlib.sha256(content).hexdigest() != self._digests[number]:
                self._bytes.drop()
                first, last = self._first_lines[number : number + 2].tolist()
                raise CorruptCache(f"{self._where}: lines {first} to {last - 1} were changed.")
            # Why no threads: storage/parquet.py.
            table = self._file.read_row_group(number, columns=list(columns), use_threads=False)
            table = table.replace_schema_metadata(None)
            self._bytes.drop()
            self._kept[key] = table
            if len(self._kept) > MAX_KEPT_GROUPS:
                self._kept.popitem(last=False)
            return table


class _Window(io.RawIOBase):
    """A file of which the parts that are read have been fetched and checked."""

    def __init__(self, content: Bytes) -> None:
        self._content, self._position = content, 0
        self._parts: list[tuple[int, Any]] = []

    def add(self, start: int, data: Any) -> None:
        """Keep a part for good."""
        self._parts.append((start, memoryview(data)))

    def fetch(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop), from which is read until ``drop``."""
        self.add(start, self._content[start:stop])
        part: memoryview = self._parts[-1][1]
        return part

    def drop(self) -> None:
        """Forget what was fetched last."""
        self._parts.pop()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        stop = len(self._content) if size < 0 else min(start + size, len(self._content))
        self._position = stop
        for begin, data in self._parts:
            if begin <= start and stop <= begin + len(data):
                return bytes(data[start - begin : stop - begin])
        return bytes(self._content[start:stop])
