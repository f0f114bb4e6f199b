"""Copying chosen rows and teachers of a cache into another place, checked and resumable.

A layout says which rows of the source become which segment of the copy. A shard whose rows stay
together is copied as it is, its sha256 checked on the way; another is read and written anew. The
copy's root is published last: until then it is no cache, and a stopped copy goes on where it was,
because a shard that has the commit record it must have is there already.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from msgspec.structs import replace

from phistill.errors import CorruptCache

from ..codes.codec import RowCodec
from ..format import names
from ..format.arrays import group_document
from ..format.info import CacheInfo, TeacherInfo
from ..format.json_document import MAX_DOCUMENT_BYTES, canonical
from ..storage.files import Files
from ..storage.local_files import LocalFiles
from ..storage.publish import PublishError
from ..store import Cache
from .layout import Part, is_run, publish_segments
from .pack import pack
from .place import MARK
from .shards import Origin, ShardTask

CopyProgress = Callable[[int, int], None]
"""Called with the bytes that are in the copy and those that will be."""


Reuse = Callable[[Cache, Cache], int]
"""Takes over the statistics of a cache that hold for its copy, given both; returns the files."""


@dataclass(frozen=True, slots=True)
class Coding:
    """Teachers that the copy stores as codes, where the source has floats."""

    teachers: Mapping[str, TeacherInfo]
    codecs: Mapping[str, Mapping[str, RowCodec]]
    """By teacher and kind, those that its entry in ``teachers`` names."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did."""

    cache: Cache
    num_shards: int
    """Shards written by this call, over all owners; 0 means that all were there."""
    num_bytes: int
    """Bytes of those."""
    num_statistics: int = 0
    """Files of statistics that hold for the copy and were taken over."""


class _Unpublished(Cache):
    """A cache whose root is not written yet."""

    def __init__(self, files: Files, info: CacheInfo) -> None:
        self._attach(files)
        self.info = info


def copy_rows(
    source: Cache,
    files: Files,
    info: CacheInfo,
    layout: Sequence[Part],
    *,
    workers: int = 4,
    progress: CopyProgress | None = None,
    reuse: Reuse | None = None,
    coding: Coding | None = None,
) -> CopyReport:
    """Fill ``files`` with the source's rows as ``layout`` says; the caller holds the lock.

    ``info`` are the copy's settings and teachers, without segments. Teachers of ``coding`` are
    stored as codes. What ``files`` held of another
    copy is overwritten, so the caller looks first. Raises CorruptCache, naming the file, where the
    source is damaged, and PublishError when the copy does not fit its disk.
    """
    files.sweep()
    coding = coding or Coding({}, {})
    _begin(source, files, info, layout, coding)
    info = replace(info, segments=tuple(publish_segments(source, files, info, layout)))
    target = _Unpublished(files, info)
    _publish_metadata(source, target, coding)
    tasks = list(_tasks(source, target, layout))
    expected = {(task.owner, task.shard): task for task in tasks}
    done = _keep_expected(target, expected)
    total = sum(task.num_bytes for task in tasks)
    missing = [task for task in tasks if (task.owner, task.shard) not in done]
    needed = sum(task.num_bytes for task in missing)
    _require_space(files, needed)
    finished = total - needed
    for task in _in_threads(missing, workers):
        finished += task.num_bytes
        if progress is not None:
            progress(finished, total)
    target.publish_root(info)
    files.delete(MARK)
    copy = Cache(files)
    pack(copy)
    return CopyReport(copy, len(missing), needed, reuse(source, copy) if reuse else 0)


def _begin(
    source: Cache, files: Files, info: CacheInfo, layout: Sequence[Part], coding: Coding
) -> None:
    """Mark the place; commit records that a copy of anything else left there are taken back."""
    content = hashlib.sha256(canonical(info))
    content.update(source.files.read(names.ROOT, max_bytes=MAX_DOCUMENT_BYTES))
    for name in info.teachers:
        content.update(canonical(coding.teachers.get(name) or source.teacher(name)))
    for part in layout:
        content.update(f"{part.start} ".encode() + part.rows.astype("<i8").tobytes())
    mark = content.hexdigest().encode()
    if files.exists(names.ROOT):
        return
    if not (files.exists(MARK) and files.read(MARK, max_bytes=2**10) == mark):
        for folder in sorted(names.COMMITTED):
            files.delete(folder)
        files.publish(MARK, [mark])


def _publish_metadata(source: Cache, target: Cache, coding: Coding) -> None:
    target.files.publish(names.metadata(names.TEACHERS), [group_document()])
    for name in target.teachers:
        teacher = coding.teachers.get(name) or source.teacher(name)
        target.publish_codecs(teacher, {**source.codecs(name), **coding.codecs.get(name, {})})
        target.publish_teacher(teacher)
    for owner in target.owners:
        target.restore_metadata(owner)


def _tasks(source: Cache, target: Cache, layout: Sequence[Part]) -> Iterator[ShardTask]:
    shard_rows = source.info.shard_rows
    origins = [Origin(source, owner) for owner in target.owners]
    coded = {origin.owner for origin in origins if target.layouts(origin.owner) != origin.layouts}
    for part in layout:
        for origin in origins:
            for first in range(0, len(part.rows), shard_rows):
                rows = part.rows[first : first + shard_rows]
                record = origin.commits[int(rows[0]) // shard_rows]
                is_whole = is_run(rows, record.start, record.num_rows)
                whole = record if is_whole and origin.owner not in coded else None
                shard = (part.start + first) // shard_rows
                yield ShardTask(origin, target, shard, rows, whole)


def _keep_expected(target: Cache, tasks: dict[tuple[str, int], ShardTask]) -> set[tuple[str, int]]:
    """What is in the copy already; records of anything else are taken back."""
    done = set()
    for owner in target.owners:
        others = []
        for shard in target.stored_shards(owner).tolist():
            task = tasks.get((owner, shard))
            if task is not None and _is_there(target, task):
                done.add((owner, shard))
            else:
                others.append(shard)
        target.forget_shards(owner, others)
    return done


def _is_there(target: Cache, task: ShardTask) -> bool:
    try:
        record = target.read_commit(task.owner, task.shard)
        target.committed_facts(record)
    except CorruptCache:
        return False
    sizes = all(target.files.size(path) == size for path, (size, _) in record.files.items())
    return sizes and task.is_done_by(record)


def _require_space(files: Files, needed: int) -> None:
    if not isinstance(files, LocalFiles):
        return
    free = shutil.disk_usage(files.root).free
    if needed > free:
        raise PublishError(
            f"{files.location} needs {needed:,} bytes more, and {free:,} are free there. Free some "
            "space, copy fewer teachers or rows, or choose another disk."
        )


def _in_threads(tasks: Sequence[ShardTask], workers: int) -> Iterator[ShardTask]:
    """Run tasks and give each back when it is done; the first failure stops what has not begun."""
    with ThreadPoolExecutor(workers, "copy") as pool:
        pending: set[Future[ShardTask]] = set()
        waiting = list(reversed(tasks))
        try:
            while waiting or pending:
                while waiting and len(pending) < 2 * workers:
                    pending.add(pool.submit(waiting.pop().run))
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
