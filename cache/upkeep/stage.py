"""Copying what a run needs of a cache to a disk near by, before it is read many times.

A staged cache is a cache: index, commit records, chosen teachers, statistics. Whole shards are
copied to the byte, so their statistics hold; the root comes last. Staging again copies only what is
missing, and what the cache has gained since.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from phistill.errors import CacheMismatch, LockHeld, UsageError, counted, remedy

from ..format import names
from ..format.info import FIXED, CacheInfo
from ..format.split import Split
from ..opening import exists
from ..storage.files import Files
from ..storage.open_files import open_files
from ..store import Cache
from .copying import CopyProgress, CopyReport, Reuse, copy_rows
from .layout import Part, Rows
from .place import refuse_other_content, require_own_place

WAIT_S = 0.5
"""Between looks at a lock that another process holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What is staged; everything by default."""

    teachers: tuple[str, ...] = ()
    """Empty takes all of them."""
    split: Split = "all"
    """``train`` or ``heldout`` takes these rows alone, written into new shards."""
    num_rows: int = 0
    """At most so many rows, the first ones: rows are in random order, so they are a fair sample."""
    max_bytes: int = 0
    """At most so many bytes of features and pixels; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.num_rows < 0 or self.max_bytes < 0:
            raise UsageError(
                f"rows={self.num_rows} and max_bytes={self.max_bytes} must be above 0."
            )


def stage(
    source: Cache,
    dest: str | Path | Files,
    selection: Selection | None = None,
    *,
    workers: int = 4,
    wait: bool = False,
    progress: CopyProgress | None = None,
    reuse: Reuse | None = None,
) -> CopyReport:
    """Copy the selected part of ``source`` to ``dest``, each file checked by its sha256.

    ``reuse`` (``stats.fit.reuse``) takes over the statistics that hold for the copy.
    ``wait`` waits for another process that is staging there instead of raising LockHeld. Raises
    IncompleteCache for unfinished teachers, CacheMismatch when ``dest`` holds another cache,
    CorruptCache where the source is damaged, PublishError when the disk is too small.
    """
    selection = selection or Selection()
    teachers = _teachers(source, selection)
    source.require_complete(teachers)
    files = open_files(dest)
    if files.absolute == source.files.absolute:
        raise UsageError(f"{files.location} is the cache itself. Stage it elsewhere.")
    layout = list(_layout(source, teachers, selection))
    end = layout[-1].start + len(layout[-1].rows)
    removed = tuple((start, min(stop, end)) for start, stop in source.info.removed if start < end)
    info = replace(
        source.info,
        teachers=teachers,
        segments=(),
        removed=removed if selection.split == "all" else (),
    )
    if not exists(files):
        require_own_place(files, source)  # before a lock is left there
    while True:
        try:
            with files.writing():
                if exists(files):
                    with remedy("Choose another folder, or delete that one.", CacheMismatch):
                        info = _grown(source, Cache(files), info, layout)
                return copy_rows(
                    source, files, info, layout, workers=workers, progress=progress, reuse=reuse
                )
        except LockHeld:
            if not wait:
                raise
            time.sleep(WAIT_S)


def _teachers(source: Cache, selection: Selection) -> tuple[str, ...]:
    for name in selection.teachers:
        source.teacher(name)  # UsageError lists the known ones
    chosen = selection.teachers or source.teachers
    return tuple(name for name in source.teachers if name in chosen)


def _layout(source: Cache, teachers: Sequence[str], selection: Selection) -> Iterator[Part]:
    """Whole segments, the first rows of them, or the rows of a split packed."""
    info = source.info
    limit = _row_limit(source, teachers, selection)
    if selection.split == "all":
        for segment in info.segments:
            num = segment.num_rows if limit is None else min(segment.num_rows, limit)
            if limit is not None:
                limit -= num
            if num:
                yield Part(segment.start, np.arange(segment.start, segment.start + num))
        return
    chosen = source.rows(teachers, selection.split)[:limit]
    if not chosen.size:
        raise UsageError(f"{source.location} has no {selection.split} row to stage.")
    start = 0
    for segment in info.segments:
        low, high = np.searchsorted(chosen, [segment.start, segment.start + segment.num_rows])
        rows: Rows = chosen[low:high]
        if rows.size:
            yield Part(start, rows)
            start += -(-rows.size // info.shard_rows) * info.shard_rows


def _row_limit(source: Cache, teachers: Sequence[str], selection: Selection) -> int | None:
    """The most rows that may be taken: by number, and by bytes in whole shards where one fits."""
    limits = [selection.num_rows] if selection.num_rows else []
    if selection.max_bytes:
        info = source.info
        pixels = [names.PIXELS] if info.pixel_size else []
        layouts = [
            layout for owner in (*pixels, *teachers) for layout in source.layouts(owner).values()
        ]

        def stored(num_rows: int) -> int:
            return sum(layout.stored_bytes(num_rows) for layout in layouts)

        shards = selection.max_bytes // stored(info.shard_rows)
        rows = shards * info.shard_rows or _most_rows(stored, selection.max_bytes, info.shard_rows)
        if rows < 1:
            raise UsageError(
                f"max_bytes={selection.max_bytes:,} does not hold one row of {stored(1):,} bytes "
                "with the indexes of its files. Raise it, or name fewer teachers."
            )
        limits.append(rows)
    return min(limits) if limits else None


def _most_rows(stored: Callable[[int], int], max_bytes: int, limit: int) -> int:
    """The most rows, at most ``limit``, whose bytes stay within ``max_bytes``; 0 if none do."""
    return bisect_right(range(1, limit + 1), max_bytes, key=stored)


def _grown(source: Cache, there: Cache, info: CacheInfo, layout: Sequence[Part]) -> CacheInfo:
    """What ``there``, staged before, becomes: its teachers stay. CacheMismatch for another one."""
    other = f"{there.location} holds another cache than {source.location}"
    for field in FIXED:
        ours, theirs = getattr(source.info, field), getattr(there.info, field)
        if ours != theirs:
            raise CacheMismatch(f"{other}: {field} is {theirs!r} there, {ours!r} here.")
    rows = [(segment.start, segment.num_rows) for segment in there.info.segments]
    planned = [(part.start, len(part.rows)) for part in layout]
    if rows != planned[: len(rows)]:
        raise CacheMismatch(
            f"{there.location} holds {counted(sum(n for _, n in rows), 'row')}, and "
            f"{sum(n for _, n in planned):,}, or others, are asked for now."
        )
    refuse_other_content(source, there, layout)
    kept = {*there.teachers, *info.teachers}
    return replace(info, teachers=tuple(name for name in source.teachers if name in kept))
