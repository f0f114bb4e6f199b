"""The tables of a cache's rows: a parquet file per segment, written once, known by its sha256."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phistill.errors import CorruptCache

from ..storage.files import Files
from . import names
from .info import Segment
from .parquet import read_table

INDEX_COLUMNS = ("row", "id", "view", "uri", "offset", "length")
"""Columns every index has; ``label`` and ``split`` may follow."""


def read_index(files: Files, segments: Sequence[Segment]) -> pa.Table:
    """The tables of all segments, one after another."""
    tables = []
    for number, segment in enumerate(segments):
        path = names.index(number)
        data = files.read(path)
        if hashlib.sha256(data).hexdigest() != segment.index_sha256:
            raise CorruptCache(
                f"{files.where(path)} is not the index the cache was made with. "
                "Restore it from a copy, or extract into a new cache."
            )
        tables.append(read_table(data))
    return pa.concat_tables(tables, promote_options="default")


def image_id(index: pa.Table, row: int) -> str:
    """What the image of a row is called."""
    position = int(index["row"].to_numpy().searchsorted(row))
    return str(index["id"][position].as_py())


def publish_index(
    files: Files, index: pa.Table, *, number: int, start: int, shard_rows: int
) -> Segment:
    """Write a segment's table (INDEX_COLUMNS), a row group per shard, and describe it."""
    if missing := set(INDEX_COLUMNS) - set(index.column_names):
        raise ValueError(f"the index lacks the columns {sorted(missing)}.")
    rows = index["row"].to_numpy()
    if not np.array_equal(rows, np.arange(start, start + index.num_rows)):
        raise ValueError(f"the index must list the rows {start}.. in order.")
    sink = io.BytesIO()
    pq.write_table(index, sink, row_group_size=shard_rows, compression="zstd")
    data = sink.getvalue()
    files.publish(names.index(number), [data])
    return Segment(
        start=start, num_rows=index.num_rows, index_sha256=hashlib.sha256(data).hexdigest()
    )
