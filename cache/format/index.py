"""The tables of a cache's rows: a parquet file per segment, written once, known by its sha256."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phistill.errors import CorruptCache

from .info import Segment

INDEX_COLUMNS = ("row", "id", "view", "uri", "offset", "length")
"""Columns every index has; ``label`` and ``split`` may follow."""


def encode_index(index: pa.Table, *, start: int, shard_rows: int) -> tuple[bytes, Segment]:
    """A segment's table (INDEX_COLUMNS) as parquet with a row group per shard, and the segment."""
    if missing := set(INDEX_COLUMNS) - set(index.column_names):
        raise ValueError(f"the index lacks the columns {sorted(missing)}.")
    rows = index["row"].to_numpy()
    if not np.array_equal(rows, np.arange(start, start + index.num_rows)):
        raise ValueError(f"the index must list the rows {start}.. in order.")
    sink = io.BytesIO()
    pq.write_table(index, sink, row_group_size=shard_rows, compression="zstd")
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    return data, Segment(start=start, num_rows=index.num_rows, index_sha256=sha256)


def decode_index(data: bytes, segment: Segment, where: str) -> pa.Table:
    """The table of a segment; CorruptCache naming ``where`` when it is not the one described."""
    if hashlib.sha256(data).hexdigest() != segment.index_sha256:
        raise CorruptCache(f"{where} is not the index the cache was made with.")
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as table:
        return table.read(use_threads=False)  # why no threads: storage/parquet.py


def image_id(index: pa.Table, row: int) -> str:
    """What the image of a row is called."""
    position = int(index["row"].to_numpy().searchsorted(row))
    return str(index["id"][position].as_py())
