"""Images in parquet tables, in random order without reading a row group per row.

A row group can only be read as a whole. Where all tables fit MEMORY_BYTES, rows of a new cache are
in random order of all images. Otherwise they are in a windowed order: row groups in random order,
in windows of half of that, and the images of a window permuted; so they are read row group by row
group, each once, by every worker for the rows that it owns, and nothing is unpacked to a disk.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache.storage.parquet import open_table, read_row_group, read_table
from phistill.errors import SourceError, UsageError

from ..local_files import read_file, retried
from ..order import windowed
from ..source import DEFAULTS, NOTHING, ImageSource, SourceOptions, refuse_duplicates
from ..splits import splits_of_files
from .columns import Columns, image_bytes
from .row_groups import Group, RowGroupBuffer

MEMORY_BYTES = 2**30
"""Of images in memory at a time, in every process that reads them."""


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
        self._opened: dict[str, _Table] = {}
        self._lock = threading.Lock()
        self._buffer = RowGroupBuffer(self._read_group, self._group_bytes, memory_bytes)

    def records(self) -> pa.Table:
        splits = splits_of_files(self._tables)
        records = pa.concat_tables(map(self._table_records, self._tables, splits))
        if not records.num_rows:
            raise UsageError(f"{self._root}: the tables have no rows.")
        refuse_duplicates(records["id"], str(self._root))
        return records

    def _table_records(self, uri: str, split: str | None) -> pa.Table:
        table = self._table(uri)
        path, names = self._root / uri, table.columns.small
        with damaged(path):
            data = retried(lambda: read_table(path, names), path)
            if data.num_rows != table.starts[-1] and names:
                raise pa.ArrowInvalid(f"{data.num_rows:,} rows, and it states {table.starts[-1]:,}")
        return table.columns.records(uri, data, table.starts[-1], self._root, split)

    def order(self, records: pa.Table, generator: np.random.Generator) -> NDArray[np.int64]:
        """Random over all images where they fit into memory, else windowed by row groups."""
        tables = [self._table(uri) for uri in self._tables]
        sizes = np.array([size for table in tables for size in table.group_bytes], np.int64)
        if sizes.sum() <= self._memory_bytes or any(table.columns.is_path for table in tables):
            return super().order(records, generator)
        return windowed(generator, self._groups_of(records), sizes, self._memory_bytes // 2)

    def _groups_of(self, records: pa.Table) -> NDArray[np.int64]:
        """The number of each record's row group among those of all tables (n,)."""
        uris = records["uri"].combine_chunks().dictionary_encode()
        number, offsets = uris.indices.to_numpy(), records["offset"].to_numpy()
        first = np.cumsum([0, *(len(self._table(uri).group_bytes) for uri in self._tables)])
        groups = np.zeros(len(offsets), np.int64)
        for code, uri in enumerate(uris.dictionary.to_pylist()):
            here = number == code
            inside = np.searchsorted(self._table(uri).starts, offsets[here], side="right") - 1
            groups[here] = first[self._tables.index(uri)] + inside
        return groups

    def expect(self, reads: Iterable[tuple[str, int]]) -> None:
        """Their row groups are read ahead, and dropped after the last of them."""
        self._buffer.expect(self._places(reads), self._num_rows)

    def _places(self, reads: Iterable[tuple[str, int]]) -> Iterator[tuple[Group, int]]:
        for uri, offset in reads:
            if offset >= 0:
                yield self._place(uri, offset)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if offset < 0:
            return read_file(self._root / uri)
        return image_bytes(self._buffer.value(*self._place(uri, offset)), self._root / uri)

    def close(self) -> None:
        """Drop what was read."""
        self._buffer.close()

    def _place(self, uri: str, offset: int) -> tuple[Group, int]:
        starts = self._table(uri).starts
        if not 0 <= offset < starts[-1]:
            raise SourceError(
                f"{self._root / uri} has {starts[-1]:,} rows; row {offset} was indexed. It changed."
            )
        group = bisect_right(starts, offset) - 1
        return (uri, group), offset - starts[group]

    def _table(self, uri: str) -> _Table:
        with self._lock:
            if uri not in self._opened:
                self._opened[uri] = _Table(self._root / uri, self.options)
            return self._opened[uri]

    def _group_bytes(self, group: Group) -> int:
        return self._table(group[0]).group_bytes[group[1]]

    def _num_rows(self, group: Group) -> int:
        starts = self._table(group[0]).starts
        return starts[group[1] + 1] - starts[group[1]]

    def _read_group(self, group: Group) -> pa.ChunkedArray:
        uri, number = group
        table, name = self._root / uri, self._table(uri).columns.image
        with damaged(table, f": row group {number}"):
            images = retried(lambda: read_row_group(table, number, [name]), table)[name]
            if len(images) != self._num_rows(group):
                raise pa.ArrowInvalid(f"{len(images):,} rows, and the file states another number")
            images.validate(full=True)
            return images


@contextmanager
def damaged(table: Path, what: str = "") -> Iterator[None]:
    """What Arrow finds wrong with a table as a SourceError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise SourceError(
            f"{table}{what} cannot be read: {said}. Get the file again; nothing was recorded for "
            "its images."
        ) from error


class _Table:
    """What the footer of a table says."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        def footer() -> tuple[pa.Schema, Any]:
            with open_table(path) as file:
                return file.schema_arrow, file.metadata

        with damaged(path):
            schema, meta = retried(footer, path)
        self.columns = Columns.of(schema, path, options.label_column, options.member)
        groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        self.starts: list[int] = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        """First row of each row group, and the number of all rows."""
        with damaged(path):
            self.group_bytes = [_image_bytes(group, self.columns.image) for group in groups]
        """Of the images in each row group, unpacked."""


def _image_bytes(group: Any, column: str) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(
        c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column
    )


def num_images(table: Path, options: SourceOptions) -> int:
    """Rows of a table that has a column of encoded images, and not only paths, or urls; else 0."""
    try:
        with open_table(table) as file:
            columns = Columns.of(file.schema_arrow, table, member=options.member)
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
