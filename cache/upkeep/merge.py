"""Two caches become one: shards of the same rows are exchanged, other images come in as segments.

Nothing here rewrites a shard. A segment is published before its first shard, the root last, so a
killed call leaves the cache as it was, or goes on when repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from phistill.errors import CacheMismatch, UsageError

from ..format.index import INDEX_COLUMNS
from ..format.info import FIXED, Segment, StoredCodec, TeacherInfo
from ..rows import removed_rows, spans
from ..store import Cache
from .append import add_segment
from .pack import pack
from .shards import copy_shard

Reuse = Callable[[Cache, Cache, Mapping[int, int]], None]


def merge(target: Cache, source: Cache, *, reuse: Reuse | None = None) -> int:
    """Copy into ``target`` what ``source`` has and it lacks. Returns the shards copied.

    Two copies of one cache that were extracted by disjoint workers give each other their shards. A
    cache of other images, made with the same settings and teachers, comes in as further segments;
    its split stays as it was. A killed call goes on when repeated, and one after ``source`` grew
    copies what is new. ``reuse`` (``stats.fit.kept_sums.merge_kept_sums``) takes over the sums of
    features that their codes alone are stored of: it gets both caches, and the first rows of the
    source's segments, to where they are in the target.

    Raises CacheMismatch naming the first difference, and CorruptCache for a shard of ``source``
    that is damaged.
    """
    if source.files.absolute == target.files.absolute:
        raise UsageError(f"{source.location} is the cache itself. Merge another into it.")
    _refuse_differences(target, source)
    starts = _starts(target, source)
    shared = {segment.start for segment in source.info.segments if segment.start in starts}
    _refuse_common_images(target, source, shared)
    new = [segment for segment in source.info.segments if segment.start not in starts]
    listings = source.info.sources[-len(new) :] if starts else source.info.sources
    for segment in new:  # the listings are taken over with the first of them
        starts[segment.start] = _add_segment_of(target, source, segment, listings)
        listings = ()
    _take_over_licences(target, source)
    _take_over_removed(target, source, starts)
    exchange = _Exchange(target, source)
    num_copied = sum(
        exchange.copy_segment(segment, starts[segment.start]) for segment in source.info.segments
    )
    if reuse is not None:
        reuse(target, source, starts)
    pack(target)
    return num_copied


def _starts(target: Cache, source: Cache) -> dict[int, int]:
    """First rows of the source's segments, to where the target has the same lines already."""
    have: dict[tuple[Any, ...], list[tuple[Segment, pa.Table]]] = {}
    for segment in target.info.segments:
        lines = _lines(target, segment)
        have.setdefault(_ends(lines), []).append((segment, lines))
    starts = {}
    for segment in source.info.segments:
        lines = _lines(source, segment)
        for other, others in have.get(_ends(lines), []):
            if lines.equals(others):
                starts[segment.start] = other.start
    return starts


def _lines(cache: Cache, segment: Segment) -> pa.Table:
    """What the index says of a segment's rows, their numbers left out."""
    rows = np.arange(segment.start, segment.start + segment.num_rows, dtype=np.int64)
    return cache.lines(rows, INDEX_COLUMNS[1:])


def _ends(lines: Any) -> tuple[Any, ...]:
    """What equal tables have in common, and few others."""
    ids = lines["id"]
    return (lines.num_rows, ids[0].as_py(), ids[-1].as_py())


def _refuse_common_images(target: Cache, source: Cache, shared: set[int]) -> None:
    new = [_lines(source, s)["id"] for s in source.info.segments if s.start not in shared]
    if not new:
        return
    ids: Any = pa.chunked_array([chunk for column in new for chunk in column.chunks])
    twice = set(ids.filter(pc.is_in(ids, value_set=target.index(["id"])["id"])).to_pylist())
    if twice:
        raise CacheMismatch(
            f"{source.location} and {target.location} both hold image {min(twice)!r} "
            f"({len(twice)} in common); merging would store it twice. "
            "Extract disjoint sets of images."
        )


def _take_over_removed(target: Cache, source: Cache, starts: dict[int, int]) -> None:
    """Hide in the target what was taken down in the source."""
    theirs, hidden = removed_rows(source.info), removed_rows(target.info)
    before = hidden.copy()
    for segment in source.info.segments:
        start = starts[segment.start]
        hidden[start : start + segment.num_rows] |= theirs[segment.start :][: segment.num_rows]
    if (hidden != before).any():
        target.publish_root(replace(target.info, removed=spans(hidden)))


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
        for key, (here, there) in _differences(target.teacher(name), source.teacher(name)).items():
            raise CacheMismatch(
                f"teacher {name}: {key} is {there!r} in {source.location}, {here!r} in "
                f"{target.location}; only caches of the same teachers, stored alike, can be merged."
            )


def _differences(ours: TeacherInfo, theirs: TeacherInfo) -> dict[str, tuple[Any, Any]]:
    """In what a teacher is, in how it was run (a shard must come out the same again), and in what
    its licence says where both say something."""
    differences = ours.differences(theirs.fingerprint)
    if ours.rows_per_forward != theirs.rows_per_forward:
        differences["rows_per_forward"] = (ours.rows_per_forward, theirs.rows_per_forward)
    for kind in sorted({*ours.codecs, *theirs.codecs}):
        one, other = (info.codecs.get(kind) for info in (ours, theirs))
        if (one and one.sha256) != (other and other.sha256):
            differences[f"the codec of {kind}"] = (_codec_text(one), _codec_text(other))
    if ours.licence and theirs.licence and ours.licence != theirs.licence:
        differences["licence"] = (ours.licence, theirs.licence)
    return differences


def _codec_text(codec: StoredCodec | None) -> str:
    if codec is None:
        return "none (floats)"
    return f"{codec.sha256[:8]} ({codec.num_bytes:,} bytes a row)"


def _take_over_licences(target: Cache, source: Cache) -> None:
    """A licence that only the source knows holds for the features here too."""
    for name in target.teachers:
        ours, theirs = target.teacher(name), source.teacher(name)
        if theirs.licence and not ours.licence:
            target.publish_teacher(replace(ours, licence=theirs.licence))


def _add_segment_of(
    target: Cache, source: Cache, segment: Segment, listings: Sequence[dict[str, Any]]
) -> int:
    """Publish a segment of the source, which came from ``listings``, as the target's next; returns
    its first row there."""
    rows = np.arange(segment.start, segment.start + segment.num_rows, dtype=np.int64)
    start = target.info.next_row
    moved = pa.array(np.arange(start, start + segment.num_rows, dtype=np.int64))
    lines = source.lines(rows).set_column(0, "row", moved)
    return add_segment(target, lines, sources=listings).start


class _Exchange:
    """The shards of both caches, looked up once."""

    def __init__(self, target: Cache, source: Cache) -> None:
        self._target, self._source = target, source
        self._theirs = {owner: source.commits(owner) for owner in source.owners}
        self._ours = {owner: target.commits(owner) for owner in target.owners}

    def copy_segment(self, segment: Segment, start: int) -> int:
        """Copy the shards of a segment whose first row is ``start`` in the target."""
        shard_rows = self._source.info.shard_rows
        first, num_shards = segment.start // shard_rows, -(-segment.num_rows // shard_rows)
        shift = start // shard_rows - first
        return sum(self._copy(n, n + shift) for n in range(first, first + num_shards))

    def _copy(self, shard: int, into: int) -> int:
        """Copy one shard of every owner under the number ``into``; what is there stays."""
        records = [theirs[shard] for theirs in self._theirs.values() if shard in theirs]
        there = [ours[into] for ours in self._ours.values() if into in ours]
        if records and there:
            self._target.committed_facts(there[0]).require_same(
                self._source.committed_facts(records[0]),
                start=there[0].start,
                owners=(there[0].owner, records[0].owner),
                image_of=self._target.image_id,
            )
        new = [record for record in records if into not in self._ours[record.owner]]
        for record in new:
            copy_shard(self._source, self._target, record, into)
        return len(new)
