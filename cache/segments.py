"""The index files of a cache: a table of rows for each segment, of which parts can be read."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import CorruptCache, remedy

from .format import names
from .format.index import INDEX_COLUMNS, IndexFile, encode_index
from .format.info import CacheInfo, Segment
from .storage.files import Files

MAX_OPEN = 16
"""Index files that are kept open: a cache may have a thousand segments, a process fewer files."""

REMEDY = "Restore it from a copy, or extract into a new cache."


class Index:
    """The tables of all segments, one after another. CorruptCache for a changed one."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: dict[str, IndexFile] = {}  # the one used last at the end
        self._lock = Lock()

    def segment(self, number: int, segment: Segment) -> IndexFile:
        """The table of one segment."""
        with self._lock:
            known = self._open.pop(segment.index_sha256, None)
            if known is None:
                path = names.index(number)
                with remedy(REMEDY, CorruptCache):
                    known = IndexFile(self._files.mapped(path), segment, self._files.where(path))
            self._open[segment.index_sha256] = known
            if len(self._open) > MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            return known

    def column_names(self, info: CacheInfo) -> list[str]:
        """Columns that any segment has."""
        every = (self.segment(n, one).column_names for n, one in enumerate(info.segments))
        return list(dict.fromkeys([*INDEX_COLUMNS, *(name for names in every for name in names)]))

    def table(self, info: CacheInfo, columns: Sequence[str] | None = None) -> pa.Table:
        """A line for each row, ascending; null in a column that a segment does not have."""
        wanted = tuple(columns or self.column_names(info))
        with remedy(REMEDY, CorruptCache):
            tables = []
            for number, segment in enumerate(info.segments):
                file = self.segment(number, segment)
                tables.append(_completed(file.table(_common(file, wanted)), wanted))
        return pa.concat_tables(tables, promote_options="default")

    def lines(
        self, info: CacheInfo, rows: NDArray[np.int64], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The lines of ``rows`` (n,), which exist, in this order. Only what they need is read."""
        wanted = tuple(columns or self.column_names(info))
        starts = np.array([segment.start for segment in info.segments], np.int64)
        numbers = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        tables = []
        with remedy(REMEDY, CorruptCache):
            for number in np.unique(numbers).tolist():
                file = self.segment(number, info.segments[number])
                inside = rows[order][numbers[order] == number] - starts[number]
                tables.append(_completed(file.lines(inside, _common(file, wanted)), wanted))
        if not tables:
            return self.table(info, wanted).slice(0, 0)
        table = pa.concat_tables(tables, promote_options="default")
        if (np.diff(order) == 1).all():
            return table
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return table.take(pa.array(back))


def _common(file: IndexFile, wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if name in file.column_names]


def _completed(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """The columns that are ``wanted``, nulls where the table has none."""
    for name in wanted:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table.select(list(wanted))


def publish_index(
    files: Files, index: pa.Table, *, number: int, start: int, shard_rows: int
) -> Segment:
    """Write the table of segment ``number``, whose rows begin at ``start``, and describe it."""
    data, segment = encode_index(index, start=start, shard_rows=shard_rows)
    files.publish(names.index(number), [data])
    return segment
