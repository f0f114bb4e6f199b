"""Further rows of a cache: a segment is published before its first shard, the root last, so that a
killed call leaves the cache as it was. No shard is rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from msgspec.structs import replace

from ..format import names
from ..format.info import Segment
from ..segments import publish_index
from ..store import Cache


def add_segment(
    cache: Cache,
    index: pa.Table,
    *,
    views: Sequence[dict[str, Any]] = (),
    sources: Sequence[dict[str, Any]] = (),
) -> Segment:
    """Publish further rows, numbered from ``CacheInfo.next_row``; their shards come afterwards.

    ``views`` are descriptions of further views, which these rows are the first to show; ``sources``
    of the listings that the rows came from.
    """
    _forget_strays(cache)
    segment = publish_index(
        cache.files,
        index,
        number=len(cache.info.segments),
        start=cache.info.next_row,
        shard_rows=cache.info.shard_rows,
    )
    info = replace(
        cache.info,
        segments=(*cache.info.segments, segment),
        views=(*cache.info.views, *views),
        sources=(*cache.info.sources, *sources),
    )
    for owner in cache.owners:
        for kind in cache.shapes(owner):
            document = cache.array_document(owner, kind, info.num_rows)
            cache.files.publish(names.metadata(names.array(owner, kind)), [document])
    cache.publish_root(info)
    return segment


def _forget_strays(cache: Cache) -> None:
    """Delete records and facts of shards that the cache does not have: it was put back to an
    earlier root, and they are of other rows than those that come now."""
    num_shards = cache.info.num_shards
    for owner in cache.owners:
        stored = cache.stored_shards(owner)
        if (strays := stored[stored >= num_shards]).size:
            cache.forget_shards(owner, strays.tolist())
    stored = cache.stored_facts()
    if (strays := stored[stored >= num_shards]).size:
        cache.forget_facts(strays.tolist())
