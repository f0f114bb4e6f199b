"""A smaller copy of a cache: features as codes, or without the bytes of removed images.

``remove_images`` only hides rows. Here the rows that are left are written to a new cache: a shard
that lost none is copied as it is and keeps its number, so that its statistics stay valid; one that
did is written anew, shorter, and ends a segment. With codecs every shard of their teachers is read
and coded; rows keep their numbers. Nothing is changed in the old cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, LockHeld, ReadOnlyPlace, UsageError, remedy

from ..codes.stored import FittedCodec, coded_teacher
from ..format.info import CacheInfo
from ..opening import exists
from ..rows import removed_rows
from ..storage.files import Files
from ..storage.open_files import open_files
from ..store import Cache
from .copying import Coding, CopyProgress, CopyReport, Reuse, copy_rows
from .layout import Part, Rows
from .place import refuse_other_content, require_own_place

MAX_SEGMENTS = 256
"""Segments that holes may leave; beyond, the rows are packed and every later shard is rewritten.
Each has an index file of its own, which every ``Cache.index`` reads."""

Codecs = Mapping[str, Mapping[str, Callable[[], FittedCodec]]]
"""By teacher and kind, what fits the codec."""


def compact(
    source: Cache,
    out: str | Path | Files,
    *,
    drop_removed: bool = False,
    codecs: Codecs | None = None,
    max_segments: int = MAX_SEGMENTS,
    workers: int = 4,
    progress: CopyProgress | None = None,
    reuse: Reuse | None = None,
) -> CopyReport:
    """Write ``source`` to ``out``, smaller; a stopped call goes on when repeated.

    ``drop_removed`` leaves out rows that were taken down: index and commit records of the copy do
    not name the images either. ``codecs`` are for features that the source has as floats, and are
    fitted when nothing else is left to refuse. ``reuse`` (``stats.fit.reuse``) takes over the
    statistics that hold for the copy.
    Shards that are missing in a finished copy are made again. Raises UsageError when there is
    nothing to do or nothing is left, or ``out`` holds something else, CacheMismatch when it holds a
    cache as large of other images, teachers or codes, IncompleteCache for an unfinished cache.
    """
    source.require_complete()
    _require_floats(source, codecs or {})
    if drop_removed and not source.info.removed:
        raise UsageError(
            f"{source.location} has no removed rows: there is nothing to drop. Take images down "
            "with `phistill remove-images` first."
        )
    files = open_files(out)
    if files.absolute == source.files.absolute:
        raise UsageError(f"{files.location} is the cache itself. A copy needs another place.")
    layout = _layout(source, max_segments, drop_removed=drop_removed)
    info = replace(source.info, segments=())
    if drop_removed:
        info = replace(info, removed=())
    there = Cache(files) if exists(files) else None
    if there is None:
        require_own_place(files, source)
    else:
        rows = [(segment.start, segment.num_rows) for segment in there.info.segments]
        if rows != [(part.start, len(part.rows)) for part in layout] or (
            replace(there.info, segments=()) != info
        ):
            raise UsageError(f"{files.location} is another cache already. Choose another place.")
    with ExitStack() as held:
        with suppress(ReadOnlyPlace):  # nobody changes it there
            held.enter_context(_unchanged(source))
        coding = _coding(source, codecs or {})
        if there is not None:
            with remedy("Choose another place.", CacheMismatch):
                refuse_other_content(source, there, layout, coding.teachers)
            if not any(there.missing_shards(owner) for owner in there.owners):
                return CopyReport(there, 0, 0)
        held.enter_context(files.writing())
        return copy_rows(
            source,
            files,
            info,
            layout,
            workers=workers,
            progress=progress,
            reuse=reuse,
            coding=coding,
        )


@contextmanager
def _unchanged(source: Cache) -> Iterator[None]:
    """Keep everybody from writing a cache that is copied."""
    with ExitStack() as held:
        try:
            held.enter_context(source.writing())
        except LockHeld as error:
            who = " and ".join(map(str, source.files.holders())) or "another process"
            raise LockHeld(
                f"{source.location} must not change while it is copied, and {who} holds it, to "
                "write it or for another copy. Wait for it, or stop it."
            ) from error
        yield


def _require_floats(source: Cache, codecs: Codecs) -> None:
    for name, wanted in codecs.items():
        if coded := set(source.teacher(name).codecs) & set(wanted):
            floats = [f"{other}=B" for other in codecs if not source.teacher(other).codecs]
            rest = f" Of the others: --bits {','.join(floats)}" if floats else ""
            raise UsageError(
                f"{source.location} holds {', '.join(sorted(coded))} of {name} as codes already, "
                "and what they lost does not come back: for fewer bits compact the cache that "
                f"they were made from, if there is one.{rest}"
            )


def _coding(source: Cache, codecs: Codecs) -> Coding:
    fitted = {
        name: {kind: fit() for kind, fit in wanted.items()} for name, wanted in codecs.items()
    }
    teachers = {name: coded_teacher(source.teacher(name), some) for name, some in fitted.items()}
    return Coding(
        teachers,
        {name: {kind: one.codec for kind, one in some.items()} for name, some in fitted.items()},
    )


def _layout(source: Cache, max_segments: int, *, drop_removed: bool) -> list[Part]:
    info = source.info
    if not drop_removed:
        return [
            Part(segment.start, np.arange(segment.start, segment.start + segment.num_rows))
            for segment in info.segments
        ]
    kept = ~removed_rows(info)
    layout = list(_in_place(info, kept))
    if len(layout) > max(max_segments, len(info.segments)):
        layout = list(_packed(info, kept))
    if not layout:
        raise UsageError(
            f"every image of {source.location} was removed; delete the folder instead."
        )
    return layout


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
