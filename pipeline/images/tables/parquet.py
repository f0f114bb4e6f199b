"""Images in parquet tables, in random order without reading a row group per row.

Rows are read in the cache's random order, and a row group can only be read as a whole. Row groups
are unpacked once, on first use: kept in memory when all of them together are small, otherwise in a
temporary file without a name (as large as the images; TMPDIR says where).
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from phistill.cache.storage.parquet import open_table, read_row_group, read_table
from phistill.errors import SourceError, UsageError

from ..local_files import read_bytes_at, read_file, retried
from ..source import DEFAULTS, NOTHING, ImageSource, SourceOptions, refuse_duplicates
from ..splits import splits_of_files
from .columns import Columns, image_bytes

MEMORY_BYTES = 2**30
"""Tables whose images are larger than this, unpacked, go to a temporary file."""


class ParquetSource(ImageSource):
    """Parquet tables with encoded images in a column, or with paths to them."""

    kind = "parquet"

    def __init__(
        self,
        root: Path,
        tables: Sequence[str],
        options: SourceOptions = DEFAULTS,
        beside: Mapping[str, int] = NOTHING,
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """``tables`` are paths below ``root``; ``beside`` is what else lies there."""
        self._root, self._tables, self.options = root, list(tables), options
        self.left_out = beside
        self._memory_bytes = memory_bytes
        self._columns: dict[str, Columns] = {}
        self._starts: dict[str, list[int]] = {}
        self._groups: dict[tuple[str, int], _Group] = {}
        self._buffer: _DiskBuffer | None = None
        self._decided = False
        self._lock = threading.Lock()
        self._busy: dict[tuple[str, int], threading.Lock] = {}

    def records(self) -> pa.Table:
        splits = splits_of_files(self._tables)
        records = pa.concat_tables(map(self._table_records, self._tables, splits))
        if not records.num_rows:
            raise UsageError(f"{self._root}: the tables have no rows.")
        refuse_duplicates(records["id"], str(self._root))
        return records

    def _table_records(self, uri: str, split: str | None) -> pa.Table:
        columns = self._open(uri)
        data = read_table(self._root / uri, columns.small)
        return columns.records(uri, data, self._starts[uri][-1], self._root, split)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if offset < 0:
            return read_file(self._root / uri)
        with self._lock:
            if uri not in self._starts:
                self._open(uri)
            starts = self._starts[uri]
            self._decide()
        if not 0 <= offset < starts[-1]:
            raise SourceError(
                f"{self._root / uri} has {starts[-1]:,} rows; row {offset} was indexed. It changed."
            )
        group = bisect_right(starts, offset) - 1
        return self._group(uri, group).read(offset - starts[group])

    def _open(self, uri: str) -> Columns:
        table = self._root / uri
        try:
            schema, meta = retried(lambda: (pq.read_schema(table), pq.read_metadata(table)), table)
        except pa.ArrowException as error:
            raise SourceError(f"{table} cannot be read as parquet: {error}.") from error
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._starts[uri] = [0, *np.cumsum(sizes).tolist()] if sizes else [0]
        self._columns[uri] = Columns.of(schema, table, self.options.label_column)
        return self._columns[uri]

    def _decide(self) -> None:
        """Memory or a temporary file, once, from the sizes in the tables' footers."""
        if self._decided:
            return
        total = sum(_image_bytes(self._root / table) for table in self._tables)
        self._buffer = _DiskBuffer() if total > self._memory_bytes else None
        self._decided = True

    def _group(self, uri: str, group: int) -> _Group:
        key = (uri, group)
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:  # one thread unpacks a row group, others unpack other ones
            if key not in self._groups:
                table, name = self._root / uri, self._columns[uri].image
                try:
                    values = retried(lambda: read_row_group(table, group, [name]), table)[name]
                except pa.ArrowException as error:
                    raise SourceError(
                        f"{table}: row group {group} cannot be read: {error}. "
                        "Get the file again; nothing was recorded for its images."
                    ) from error
                unpacked = (
                    _InMemory(values, table)
                    if self._buffer is None
                    else self._buffer.add(values, table)
                )
                self._groups[key] = unpacked
            return self._groups[key]


class _Group(Protocol):
    def read(self, row: int) -> bytes: ...


class _InMemory:
    def __init__(self, values: pa.ChunkedArray, table: Path) -> None:
        self._values, self._table = values, table

    def read(self, row: int) -> bytes:
        return image_bytes(self._values[row].as_py(), self._table)


class _DiskBuffer:
    """A temporary file that unpacked row groups are appended to."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="phistill-images-") as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._end = 0
        self._lock = threading.Lock()

    def add(self, values: pa.ChunkedArray, table: Path) -> _OnDisk:
        offsets = np.zeros(len(values) + 1, np.int64)
        with self._lock:
            offsets[0] = self._end
            try:
                for row, value in enumerate(values):
                    data = image_bytes(value.as_py(), table)
                    start, view = int(offsets[row]), memoryview(data)
                    while view:
                        done = os.pwrite(self._descriptor, view, start)
                        start, view = start + done, view[done:]
                    offsets[row + 1] = start
            except OSError as error:
                raise SourceError(
                    f"unpacking the images into {tempfile.gettempdir()} failed "
                    f"({error.strerror}); set TMPDIR to a folder with room for all of them."
                ) from error
            self._end = int(offsets[-1])
        return _OnDisk(self, offsets)

    def read(self, start: int, length: int) -> bytes:
        return read_bytes_at(self._descriptor, start, length)


class _OnDisk:
    def __init__(self, spool: _DiskBuffer, offsets: NDArray[np.int64]) -> None:
        self._buffer, self._offsets = spool, offsets

    def read(self, row: int) -> bytes:
        start, stop = self._offsets[row : row + 2].tolist()
        return self._buffer.read(start, stop - start)


def _image_bytes(table: Path) -> int:
    """Unpacked bytes of a table's image column, from its footer."""
    meta: Any = pq.read_metadata(table)
    name = Columns.of(meta.schema.to_arrow_schema(), table).image
    chunks = (
        meta.row_group(group).column(column)
        for group in range(meta.num_row_groups)
        for column in range(meta.num_columns)
    )
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == name)


def num_images(table: Path) -> int:
    """Rows of a table that has a column of encoded images, and not only paths, or urls; else 0."""
    try:
        with open_table(table) as file:
            columns = Columns.of(file.schema_arrow, table)
            return 0 if columns.is_path else int(file.metadata.num_rows)
    except (UsageError, pa.ArrowException, OSError):
        return 0


def is_readable(table: Path) -> bool:
    """Whether a file is a table, whatever it holds."""
    try:
        with open_table(table):
            return True
    except (pa.ArrowException, OSError):
        return False
