"""Reading parquet without Arrow's thread pools.

With torch in the same process, a pool that Arrow started aborts the interpreter at exit in a third
of the runs ("terminate called without an active exception", pyarrow 26 with torch 2.15),
after the work is done and with exit code 134. Our tables are small; one thread reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def open_table(source: Path | bytes) -> pq.ParquetFile:
    """A parquet file, by path or by content, for row-group reads with ``use_threads=False``."""
    file = pa.BufferReader(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(file, pre_buffer=False)


def read_table(source: Path | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole parquet table, or some of its columns."""
    with open_table(source) as table:
        return table.read(columns=None if columns is None else list(columns), use_threads=False)


def read_row_group(source: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """One row group's columns."""
    with open_table(source) as table:
        return table.read_row_group(group, columns=list(columns), use_threads=False)
