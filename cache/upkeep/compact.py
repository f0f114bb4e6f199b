"""A copy of a cache without the bytes of the images that were taken down.

``remove_images`` only hides rows. Here the rows that are left are written to a new cache: a shard
that lost none is copied as it is and keeps its number, so that its statistics stay valid; one that
did is written anew, shorter, and ends a segment. Nothing is changed in the old cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, ReadOnlyPlace, UsageError, remedy

from ..format.info import CacheInfo
from ..opening import exists
from ..rows import removed_rows
from ..storage.files import Files
from ..storage.open_files import open_files
from ..store import Cache
from .copying import CopyProgress, CopyReport, Reuse, copy_rows
from .layout import Part, Rows
from .place import refuse_other_content, require_own_place

MAX_SEGMENTS = 256
"""Segments that holes may leave; beyond, the rows are packed and every later shard is rewritten.
Each has an index file of its own, which every ``Cache.index`` reads."""


def drop_removed(
    source: Cache,
    out: str | Files,
    *,
    max_segments: int = MAX_SEGMENTS,
    workers: int = 4,
    progress: CopyProgress | None = None,
    reuse: Reuse | None = None,
) -> CopyReport:
    """Write ``source`` without its removed rows to ``out``; a stopped call goes on when repeated.

    Index and commit records of the copy do not name the images either. ``reuse``
    (``stats.fit.reuse``) takes over the statistics that hold for the copy. Raises UsageError when
    nothing was removed or nothing is left, or ``out`` holds something else, CacheMismatch when it
    holds a cache as large of other images or teachers, IncompleteCache for an unfinished cache.
    """
    source.require_complete()
    if not source.info.removed:
        raise UsageError(
            f"{source.location} has no removed rows: there is nothing to drop. Take images down "
            "with `phistill remove-images` first."
        )
    files = open_files(out)
    if files.absolute == source.files.absolute:
        raise UsageError(f"{files.location} is the cache itself. A copy needs another place.")
    kept = ~removed_rows(source.info)
    layout = list(_in_place(source.info, kept))
    if len(layout) > max(max_segments, len(source.info.segments)):
        layout = list(_packed(source.info, kept))
    if not layout:
        raise UsageError(
            f"every image of {source.location} was removed; delete the folder instead."
        )
    info = replace(source.info, removed=(), segments=())
    if exists(files):
        there = Cache(files)
        rows = [(segment.start, segment.num_rows) for segment in there.info.segments]
        if rows == [(part.start, len(part.rows)) for part in layout] and (
            replace(there.info, segments=()) == info
        ):
            with remedy("Choose another place.", CacheMismatch):
                refuse_other_content(source, there, layout)
            return CopyReport(there, 0, 0)
        raise UsageError(f"{files.location} is another cache already. Choose another place.")
    require_own_place(files, source)
    with ExitStack() as held:
        with suppress(ReadOnlyPlace):  # nobody changes it there
            held.enter_context(source.writing())
        held.enter_context(files.writing())
        return copy_rows(
            source, files, info, layout, workers=workers, progress=progress, reuse=reuse
        )


def _in_place(info: CacheInfo, kept: NDArray[np.bool_]) -> Iterator[Part]:
    """Every shard keeps its number; a segment ends behind each that lost rows."""
    for segment in info.segments:
        start = segment.start
        run: list[Rows] = []
        stop = segment.start + segment.num_rows
        for first in range(segment.start, stop, info.shard_rows):
            whole = np.arange(first, min(first + info.shard_rows, stop), dtype=np.int64)
            left = whole[kept[whole]]
            if left.size:
                run.append(left)
            if left.size < whole.size:
                if run:
                    yield Part(start, np.concatenate(run))
                start, run = first + info.shard_rows, []
        if run:
            yield Part(start, np.concatenate(run))


def _packed(info: CacheInfo, kept: NDArray[np.bool_]) -> Iterator[Part]:
    """Every segment without holes, one behind the other."""
    start = 0
    for segment in info.segments:
        rows: Rows = np.arange(segment.start, segment.start + segment.num_rows, dtype=np.int64)
        left = rows[kept[rows]]
        if left.size:
            yield Part(start, left)
            start += -(-left.size // info.shard_rows) * info.shard_rows
