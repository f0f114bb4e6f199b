"""The index: which image is which row, in a seeded random order.

Rows follow a random permutation of the images, so one shard is already a fair sample. All views of
an image are consecutive rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache import Cache

from .decode.pending import ShardRows
from .images.source import ImageRecord


def build_index(
    records: Sequence[ImageRecord],
    *,
    num_views: int,
    seed: int,
    start: int = 0,
    shuffle: bool = True,
    window: int | None = None,
) -> pa.Table:
    """The table of a segment: row, id, view, uri, offset, length, and label and split if known.

    ``shuffle=False`` keeps the order of records that are in random order already. With a ``window``
    files are in random order and images only change places with those of the same ``window`` files:
    an order for files that are fetched one after another.
    """
    generator = np.random.Generator(np.random.PCG64([seed, start]))
    if window is not None:
        order = _windowed(generator, [record.uri for record in records], window)
    else:
        order = generator.permutation(len(records)) if shuffle else np.arange(len(records))
    chosen = [records[position] for position in np.repeat(order, num_views).tolist()]
    columns = {
        "row": pa.array(np.arange(start, start + len(chosen), dtype=np.int64)),
        "id": pa.array([record.id for record in chosen], pa.string()),
        "view": pa.array(np.tile(np.arange(num_views, dtype=np.int32), len(records))),
        "uri": pa.array([record.uri for record in chosen], pa.string()),
        "offset": pa.array([record.offset for record in chosen], pa.int64()),
        "length": pa.array([record.length for record in chosen], pa.int64()),
    }
    if any(record.label is not None for record in records):
        columns["label"] = pa.array([record.label for record in chosen], pa.string())
    if any(record.split is not None for record in records):
        columns["split"] = pa.array([record.split for record in chosen], pa.string())
    return pa.table(columns)


def _windowed(
    generator: np.random.Generator, uris: Sequence[str], window: int
) -> NDArray[np.int64]:
    """Positions (n,): files permuted, then the images of each ``window`` of them."""
    names, of = np.unique(np.array(uris, dtype=object), return_inverse=True)
    rank = generator.permutation(len(names))  # of each file among all
    turn = rank[of] // window  # the window that an image belongs to
    return np.lexsort((generator.permutation(len(uris)), turn)).astype(np.int64)


def rows_of_shards(cache: Cache, shards: Sequence[int]) -> Iterator[ShardRows]:
    """What the index says of each shard's rows, in order."""
    table = cache.index().select(["row", "id", "uri", "offset", "length", "view"])
    rows = table["row"].to_numpy()
    for shard in shards:
        start, stop = cache.info.shard_range(shard)
        part = table.slice(int(rows.searchsorted(start)), stop - start)
        yield shard_rows(part, shard)


def shard_rows(lines: pa.Table, shard: int = 0) -> ShardRows:
    """Lines of an index as the rows of a shard."""
    part = lines.to_pydict()
    return ShardRows(shard, part["uri"], part["offset"], part["length"], part["view"], part["id"])


def reads_of_shards(cache: Cache, shards: Sequence[int]) -> Iterator[tuple[str, int]]:
    """(uri, offset) of the images of ``shards``, in order; nothing is done until one is asked
    for."""
    index = cache.index().select(["row", "uri", "offset"])
    rows = index["row"].to_numpy()
    spans = [cache.info.shard_range(shard) for shard in shards]
    part = index.take(np.concatenate([np.arange(*rows.searchsorted(span)) for span in spans]))
    yield from zip(part["uri"].to_pylist(), part["offset"].to_pylist(), strict=True)
