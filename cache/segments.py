"""The index files of a cache: a table of rows for each segment."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from phistill.errors import CorruptCache, remedy

from .format import names
from .format.index import decode_index, encode_index
from .format.info import Segment
from .storage.files import Files


def read_index(files: Files, segments: Sequence[Segment]) -> pa.Table:
    """The tables of all segments, one after another; CorruptCache for a changed one."""
    tables = [read_segment(files, number, segment) for number, segment in enumerate(segments)]
    return pa.concat_tables(tables, promote_options="default")


def read_segment(files: Files, number: int, segment: Segment) -> pa.Table:
    """The table of one segment; CorruptCache for a changed one."""
    path = names.index(number)
    with remedy("Restore it from a copy, or extract into a new cache.", CorruptCache):
        return decode_index(files.read(path), segment, files.where(path))


def publish_index(
    files: Files, index: pa.Table, *, number: int, start: int, shard_rows: int
) -> Segment:
    """Write the table of segment ``number``, whose rows begin at ``start``, and describe it."""
    data, segment = encode_index(index, start=start, shard_rows=shard_rows)
    files.publish(names.index(number), [data])
    return segment
