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
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, UsageError

from ..format import names
from ..format.index import INDEX_COLUMNS, image_id, publish_index
from ..format.info import FIXED, CacheInfo, Segment
from ..joined import row_hashes
from ..rows import removed_rows
from ..store import Cache
from .copying import copy_shard


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
    """Take down images by id: their rows are never given out again. Returns how many rows that is,
    without those that were removed before.

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
    hidden = removed_rows(cache.info)
    num_new = int(np.count_nonzero(~hidden[chosen]))
    hidden[chosen] = True
    if num_new:
        cache.publish_root(replace(cache.info, removed=_spans(hidden)))
    return num_new


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
    hidden = removed_rows(cache.info)
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
    its split stays as it was. A killed call goes on when repeated, and one after ``source`` grew
    copies what is new. Raises CacheMismatch naming the first difference, and CorruptCache for a
    shard of ``source`` that is damaged.
    """
    if source.files.absolute == target.files.absolute:
        raise UsageError(f"{source.location} is the cache itself. Merge another into it.")
    _refuse_differences(target, source)
    starts = _starts(target, source)
    shared = {segment.start for segment in source.info.segments if segment.start in starts}
    _refuse_common_images(target, source, shared)
    for segment in source.info.segments:
        if segment.start not in starts:
            starts[segment.start] = _add_segment_of(target, source, segment)
    _carry_removed(target, source, starts)
    return sum(
        _copy_segment(target, source, segment, starts[segment.start])
        for segment in source.info.segments
    )


def _starts(target: Cache, source: Cache) -> dict[int, int]:
    """First rows of the source's segments, to where the target has the same lines already."""
    ours, theirs = target.index(), source.index()
    have = [(segment, _lines(ours, segment)) for segment in target.info.segments]
    found = {}
    for segment in source.info.segments:
        lines = _lines(theirs, segment)
        for other, others in have:
            if other.num_rows == segment.num_rows and lines.equals(others):
                found[segment.start] = other.start
    return found


def _lines(index: Any, segment: Segment) -> Any:
    """What the index says of a segment's rows, their numbers left out."""
    first = int(index["row"].to_numpy().searchsorted(segment.start))
    return index.slice(first, segment.num_rows).select(INDEX_COLUMNS[1:])


def _refuse_common_images(target: Cache, source: Cache, shared: set[int]) -> None:
    theirs = source.index()
    new = [_lines(theirs, s)["id"] for s in source.info.segments if s.start not in shared]
    twice = set(target.index()["id"].to_pylist()) & {
        name for ids in new for name in ids.to_pylist()
    }
    if twice:
        raise CacheMismatch(
            f"{source.location} and {target.location} both hold image {min(twice)!r} "
            f"({len(twice)} in common); merging would store it twice. "
            "Extract disjoint sets of images."
        )


def _carry_removed(target: Cache, source: Cache, starts: dict[int, int]) -> None:
    """Hide in the target what was taken down in the source."""
    theirs, hidden = removed_rows(source.info), removed_rows(target.info)
    before = hidden.copy()
    for segment in source.info.segments:
        start = starts[segment.start]
        hidden[start : start + segment.num_rows] |= theirs[segment.start :][: segment.num_rows]
    if (hidden != before).any():
        target.publish_root(replace(target.info, removed=_spans(hidden)))


def _spans(hidden: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Ranges [start, stop) where a mask is True."""
    edges = np.flatnonzero(np.diff(np.r_[0, hidden.astype(np.int8), 0])).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _refuse_differences(target: Cache, source: Cache) -> None:
    for field in FIXED:
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


def _add_segment_of(target: Cache, source: Cache, segment: Segment) -> int:
    """Publish a segment of the source as the target's next; returns its first row there."""
    index: Any = source.index()
    first, start = int(index["row"].to_numpy().searchsorted(segment.start)), next_row(target.info)
    moved = pa.array(np.arange(start, start + segment.num_rows, dtype=np.int64))
    lines = index.slice(first, segment.num_rows).set_column(0, "row", moved)
    return add_segment(target, lines).start


def _copy_segment(target: Cache, source: Cache, segment: Segment, start: int) -> int:
    """Copy the shards of a segment whose first row is ``start`` in the target."""
    shard_rows = source.info.shard_rows
    first, num_shards = segment.start // shard_rows, -(-segment.num_rows // shard_rows)
    shift = start // shard_rows - first
    return sum(
        _copy(target, source, shard, shard + shift) for shard in range(first, first + num_shards)
    )


def _copy(target: Cache, source: Cache, shard: int, into: int) -> int:
    """Copy one shard of every owner under the number ``into``; what is there already stays."""
    index, copied = target.index(), 0
    for owner in source.owners:
        record = source.committed(owner, shard)
        if record is None:
            continue
        for other in target.owners:
            if (theirs := target.committed(other, into)) is not None:
                theirs.require_images(record.images, owner, lambda row: image_id(index, row))
        if target.committed(owner, into) is None:
            copy_shard(source, target, record, into)
            copied += 1
    return copied
