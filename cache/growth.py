"""A cache that grows and shrinks: further images, a teacher less, images taken down, caches merged.

Nothing here rewrites a shard. A segment is published before its first shard, the root last, so a
killed call leaves the cache as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from . import names
from .commit import CommitRecord
from .errors import CacheMismatch, UsageError
from .index import publish_index
from .info import CacheInfo, Segment
from .joined import row_hashes
from .store import Cache


def next_row(info: CacheInfo) -> int:
    """First row of the next segment: the end of the last, rounded up to a whole shard."""
    return -(-info.num_rows // info.shard_rows) * info.shard_rows


def add_segment(cache: Cache, index: pa.Table, *, views: Sequence[dict[str, Any]] = ()) -> Segment:
    """Publish further rows, numbered from ``next_row``; their shards are committed afterwards.

    ``views`` are descriptions of further views, which these rows are the first to show.
    """
    segment = publish_index(
        cache.files,
        index,
        number=len(cache.info.segments),
        start=next_row(cache.info),
        shard_rows=cache.info.shard_rows,
    )
    info = replace(
        cache.info,
        segments=(*cache.info.segments, segment),
        views=(*cache.info.views, *views),
    )
    for owner in cache.owners:
        for kind in cache.shapes(owner):
            document = cache.array_document(owner, kind, info.num_rows)
            cache.files.publish(names.metadata(names.array(owner, kind)), [document])
    cache.publish_root(info)
    return segment


def remove_images(cache: Cache, ids: Sequence[str]) -> int:
    """Take down images by id: their rows are never given out again. Returns how many rows.

    The bytes stay in their shards. Statistics that used the rows become stale.
    """
    index = cache.index()
    known = index["id"].to_pylist()
    wanted = set(ids)
    if unknown := sorted(wanted - set(known)):
        raise UsageError(
            f"{cache.location} has no image {unknown[0]!r} "
            f"({len(unknown)} of {len(wanted)} unknown)."
        )
    chosen = index["row"].to_numpy()[[name in wanted for name in known]]
    hidden = np.zeros(cache.num_rows, bool)
    for start, stop in cache.info.removed:
        hidden[start:stop] = True
    hidden[chosen] = True
    edges = np.flatnonzero(np.diff(np.r_[0, hidden.astype(np.int8), 0])).tolist()
    spans = tuple(zip(edges[::2], edges[1::2], strict=True))
    cache.publish_root(replace(cache.info, removed=spans))
    return int(chosen.size)


def duplicates(cache: Cache, ids: Sequence[str]) -> dict[str, str]:
    """Other images with the same bytes as one of ``ids``, each with the one it equals.

    Bytes are compared by the sha256 in the commit records; images that were taken down already are
    left out.
    """
    index = cache.index()
    wanted = set(ids)
    rows, known = index["row"].to_numpy(), index["id"].to_pylist()
    hashes = row_hashes(cache)
    removed_as = {
        hashes[row]: name
        for row, name in zip(rows.tolist(), known, strict=True)
        if name in wanted and hashes[row] is not None
    }
    hidden = np.zeros(cache.num_rows, bool)
    for start, stop in cache.info.removed:
        hidden[start:stop] = True
    return {
        name: removed_as[hashes[row]]
        for row, name in zip(rows.tolist(), known, strict=True)
        if name not in wanted and hashes[row] in removed_as and not hidden[row]
    }


def remove_teacher(cache: Cache, name: str) -> None:
    """Forget a teacher, then delete its features, commits and statistics."""
    cache.teacher(name)
    left = tuple(other for other in cache.teachers if other != name)
    cache.publish_root(replace(cache.info, teachers=left))
    cache.files.delete(names.commits(name))
    cache.files.delete(names.group(name))


def merge(target: Cache, source: Cache) -> int:
    """Copy into ``target`` what ``source`` has and it lacks. Returns the shards copied.

    Two copies of one cache that were extracted by disjoint workers give each other their shards. A
    cache of other images, made with the same settings and teachers, comes in as further segments;
    its split stays as it was. Raises CacheMismatch naming the first difference.
    """
    _refuse_differences(target, source)
    if _same_rows(target, source):
        return sum(_copy(target, source, shard, shard) for shard in source.info.shards())
    twice = set(target.index()["id"].to_pylist()) & set(source.index()["id"].to_pylist())
    if twice:
        raise CacheMismatch(
            f"{source.location} and {target.location} both hold image {min(twice)!r} "
            f"({len(twice)} in common); merging would store it twice. "
            "Extract disjoint sets of images."
        )
    return sum(_copy_segment(target, source, segment) for segment in source.info.segments)


def _refuse_differences(target: Cache, source: Cache) -> None:
    for field in ("seed", "shard_rows", "holdout", "pixel_size", "views", "decode", "compression"):
        ours, theirs = getattr(target.info, field), getattr(source.info, field)
        if ours != theirs:
            raise CacheMismatch(
                f"{source.location} was made with {field}={theirs!r}, {target.location} with "
                f"{ours!r}; only caches with equal settings can be merged."
            )
    for name in sorted({*target.teachers, *source.teachers}):
        if name not in target.teachers or name not in source.teachers:
            where = source.location if name not in source.teachers else target.location
            raise CacheMismatch(f"{where} has no teacher {name!r}; both caches need the same ones.")
        ours, theirs = target.teacher(name).to_dict(), source.teacher(name).to_dict()
        for key in ours:
            if key != "spec" and ours[key] != theirs[key]:
                raise CacheMismatch(
                    f"teacher {name}: {key} is {theirs[key]!r} in {source.location}, {ours[key]!r} "
                    f"in {target.location}; their features are not comparable."
                )


def _same_rows(target: Cache, source: Cache) -> bool:
    return target.info.segments == source.info.segments


def _copy_segment(target: Cache, source: Cache, segment: Segment) -> int:
    table: Any = source.index()
    rows = table["row"].to_numpy()
    part = table.slice(int(rows.searchsorted(segment.start)), segment.num_rows)
    start = next_row(target.info)
    moved = pa.array(np.arange(start, start + part.num_rows, dtype=np.int64))
    add_segment(target, part.set_column(0, "row", moved))
    shift = (start - segment.start) // target.info.shard_rows
    num_shards = -(-segment.num_rows // target.info.shard_rows)
    first = segment.start // source.info.shard_rows
    return sum(
        _copy(target, source, shard, shard + shift) for shard in range(first, first + num_shards)
    )


def _copy(target: Cache, source: Cache, shard: int, into: int) -> int:
    """Copy one shard of every owner under the number ``into``; what is there already stays."""
    copied = 0
    for owner in source.owners:
        record = source.commits(owner).get(shard)
        if record is None or into in target.commits(owner):
            continue
        files = {}
        for kind, shape in source.shapes(owner).items():
            old = names.shard(owner, kind, shard, 1 + len(shape))
            new = names.shard(owner, kind, into, 1 + len(shape))
            target.files.publish(new, [source.files.read(old)])
            files[new] = record.files[old]
        moved: CommitRecord = replace(
            record, shard=into, start=into * target.info.shard_rows, files=files
        )
        target.files.create(names.commit(owner, into), moved.to_bytes())
        copied += 1
    return copied
