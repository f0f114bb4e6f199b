"""Which rows of a cache become which segment of its copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..format import names
from ..format.info import CacheInfo, Segment
from ..segments import publish_index
from ..storage.files import Files
from ..store import Cache

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A segment of the copy: the source's ``rows`` (n,), numbered from ``start``."""

    start: int
    rows: Rows


def publish_segments(
    source: Cache, files: Files, info: CacheInfo, layout: Sequence[Part]
) -> Iterator[Segment]:
    """Publish the index of every part; one that is the source's own is copied to the byte."""
    own = {segment.start: (n, segment) for n, segment in enumerate(source.info.segments)}
    for number, part in enumerate(layout):
        old, segment = own.get(part.start, (0, None))
        if segment is not None and is_run(part.rows, segment.start, segment.num_rows):
            files.publish(names.index(number), [source.files.read(names.index(old))])
            yield segment
            continue
        table = source.lines(part.rows)
        rows = np.arange(part.start, part.start + len(part.rows), dtype=np.int64)
        table = table.set_column(0, "row", pa.array(rows))
        yield publish_index(
            files, table, number=number, start=part.start, shard_rows=info.shard_rows
        )


def is_run(rows: Rows, start: int, num_rows: int) -> bool:
    return len(rows) == num_rows and int(rows[0]) == start and int(rows[-1]) == start + num_rows - 1
