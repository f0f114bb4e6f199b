"""The index: which image is which row, in a seeded random order.

Rows follow a random permutation of the images, so one shard is already a fair sample. All views of
an image are consecutive rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from phistill.cache import Cache

from .decode.pending import ShardRows
from .images.source import ImageSource


def build_index(
    records: pa.Table,
    *,
    num_views: int,
    seed: int,
    start: int = 0,
    source: ImageSource | None = None,
    shuffle: bool = True,
) -> pa.Table:
    """The table of a segment: row, id, view, uri, offset, length, and label and split if known.

    ``source`` decides in which random order its images can be read; without one they are permuted.
    ``shuffle=False`` keeps the order of records that are in random order already.
    """
    generator = np.random.Generator(np.random.PCG64([seed, start]))
    num_images = records.num_rows
    if not shuffle:
        order = np.arange(num_images)
    elif source is None:
        order = generator.permutation(num_images)
    else:
        order = source.order(records, generator)
    chosen = records.take(pa.array(np.repeat(order, num_views)))
    rows = np.arange(start, start + chosen.num_rows, dtype=np.int64)
    views = np.tile(np.arange(num_views, dtype=np.int32), num_images)
    columns = {"row": pa.array(rows), "id": chosen["id"], "view": pa.array(views)}
    columns |= {name: chosen[name] for name in ("uri", "offset", "length")}
    for name in ("label", "split"):
        if chosen[name].null_count < chosen.num_rows:
            columns[name] = chosen[name]
    return pa.table(columns)


def rows_of_shards(cache: Cache, shards: Sequence[int], part_rows: int) -> Iterator[ShardRows]:
    """What the index says of each shard's rows, in order and in parts of ``part_rows``."""
    columns = ["id", "uri", "offset", "length", "view"]
    for shard in shards:
        rows = np.arange(*cache.info.shard_range(shard), dtype=np.int64)
        lines = cache.lines(rows, columns)
        for first in range(0, lines.num_rows, part_rows):
            yield shard_rows(lines.slice(first, part_rows), shard, first)


def shard_rows(lines: pa.Table, shard: int = 0, first: int = 0) -> ShardRows:
    """Lines of an index as the rows of a shard from its row ``first`` on."""
    part = lines.to_pydict()
    return ShardRows(
        *(shard, part["uri"], part["offset"], part["length"], part["view"], part["id"]),
        first=first,
    )


def reads_of_shards(cache: Cache, shards: Sequence[int]) -> Iterator[tuple[str, int]]:
    """(uri, offset) of the images of ``shards``, in order; nothing is done until one is asked
    for."""
    for shard in shards:
        rows = np.arange(*cache.info.shard_range(shard), dtype=np.int64)
        part = cache.lines(rows, ["uri", "offset"])
        yield from zip(part["uri"].to_pylist(), part["offset"].to_pylist(), strict=True)
