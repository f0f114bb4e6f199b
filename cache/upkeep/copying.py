"""Copying chosen rows and teachers of a cache into another place, checked and resumable.

A layout says which rows of the source become which segment of the copy. A shard whose rows stay
together is copied as it is, its sha256 checked on the way; another is read and written anew. The
copy's root is published last: until then it is no cache, and a stopped copy goes on where it was,
because a shard that has the commit record it must have is there already.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, CorruptCache, UsageError

from ..format import names
from ..format.arrays import group_document
from ..format.document import MAX_DOCUMENT_BYTES, canonical
from ..format.index import INDEX_COLUMNS, publish_index
from ..format.info import DTYPES, CacheInfo, Segment
from ..format.record import CommitRecord, ImageFacts
from ..format.shard import index_bytes
from ..rows import removed_rows
from ..storage.files import Files, LocalFiles
from ..storage.publish import TEMPORARY_SUFFIX, PublishError
from ..store import Cache

Rows = NDArray[np.int64]

CopyProgress = Callable[[int, int], None]
"""Called with the bytes that are in the copy and those that will be."""

MARK = ".copying"
"""A file of an unfinished copy: the digest of what it is a copy of."""

OURS = frozenset({"index", "teachers", names.PIXELS, names.COMMITS, *names.WRITERS, MARK})
"""What an unfinished copy consists of."""


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A segment of the copy: the source's ``rows`` (n,), numbered from ``start``."""

    start: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did."""

    cache: Cache
    num_shards: int
    """Shards written by this call, over all owners; 0 means that all were there."""
    num_bytes: int
    """Bytes of those."""


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
) -> CopyReport:
    """Fill ``files`` with the source's rows as ``layout`` says; the caller holds the lock.

    ``info`` are the copy's settings and teachers, without segments. What ``files`` held of another
    copy is overwritten, so the caller looks first. Raises CorruptCache, naming the file, where the
    source is damaged, and PublishError when the copy does not fit its disk.
    """
    files.sweep()
    _begin(source, files, info, layout)
    info = replace(info, segments=tuple(_segments(source, files, info, layout)))
    target = _Unpublished(files, info)
    _publish_metadata(source, target)
    tasks = [task for part in layout for task in _tasks(source, target, part)]
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
    return CopyReport(Cache(files), len(missing), needed)


def _begin(source: Cache, files: Files, info: CacheInfo, layout: Sequence[Part]) -> None:
    """Mark the place; commit records that a copy of anything else left there are taken back."""
    content = hashlib.sha256(canonical(info.to_dict()))
    content.update(source.files.read(names.ROOT, max_bytes=MAX_DOCUMENT_BYTES))
    for name in info.teachers:
        content.update(canonical(source.teacher(name).to_dict()))
    for part in layout:
        content.update(f"{part.start} ".encode() + part.rows.astype("<i8").tobytes())
    mark = content.hexdigest().encode()
    if files.exists(names.ROOT):
        return
    if not (files.exists(MARK) and files.read(MARK, max_bytes=2**10) == mark):
        files.delete(names.COMMITS)
        files.publish(MARK, [mark])


def _segments(
    source: Cache, files: Files, info: CacheInfo, layout: Sequence[Part]
) -> Iterator[Segment]:
    """Publish the index of every part; one that is the source's own is copied to the byte."""
    index: Any = source.index()
    lines = index["row"].to_numpy()
    own = {segment.start: (n, segment) for n, segment in enumerate(source.info.segments)}
    for number, part in enumerate(layout):
        old, segment = own.get(part.start, (0, None))
        if segment is not None and _is_run(part.rows, segment.start, segment.num_rows):
            files.publish(names.index(number), [source.files.read(names.index(old))])
            yield segment
            continue
        table = index.take(pa.array(np.searchsorted(lines, part.rows)))
        rows = np.arange(part.start, part.start + len(part.rows), dtype=np.int64)
        table = table.set_column(0, "row", pa.array(rows))
        yield publish_index(
            files, table, number=number, start=part.start, shard_rows=info.shard_rows
        )


def _is_run(rows: Rows, start: int, num_rows: int) -> bool:
    return len(rows) == num_rows and int(rows[0]) == start and int(rows[-1]) == start + num_rows - 1


def _publish_metadata(source: Cache, target: Cache) -> None:
    target.files.publish(names.metadata(names.TEACHERS), [group_document()])
    for name in target.teachers:
        path = names.metadata(names.group(name))
        target.files.publish(path, [source.files.read(path, max_bytes=MAX_DOCUMENT_BYTES)])
    for owner in target.owners:
        target.restore_metadata(owner)


@dataclass(frozen=True, eq=False, slots=True)
class _Task:
    """One shard of one owner of the copy."""

    source: Cache
    target: Cache
    owner: str
    shard: int
    rows: Rows
    """Of the source, ascending."""
    whole: CommitRecord | None
    """The record of the source's shard when this one is just that shard."""

    @property
    def num_bytes(self) -> int:
        if self.whole is not None:
            return sum(size for size, _ in self.whole.files.values())
        shapes = self.source.shapes(self.owner)
        row = sum(int(np.prod(s)) * DTYPES[k].itemsize + 4 for k, s in shapes.items())
        return len(self.rows) * row + len(shapes) * index_bytes(self.source.info.shard_rows)

    def is_done_by(self, record: CommitRecord) -> bool:
        """Whether a record of the copy vouches for what this task would write."""
        if self.whole is not None:
            return record == renumbered(self.source, self.whole, self.shard)
        facts, reasons, environment = self._facts()
        return (record.images, record.reasons, record.environment) == (facts, reasons, environment)

    def run(self) -> _Task:
        """Write the shard's files and then its record."""
        if self.whole is None:
            self._gather()
        else:
            copy_shard(self.source, self.target, self.whole, self.shard)
        return self

    def _gather(self) -> None:
        facts, reasons, environment = self._facts()
        accepted = np.ones(len(self.rows), bool)
        accepted[list(reasons)] = False
        accepted &= ~removed_rows(self.source.info)[self.rows]  # hidden in the copy too
        arrays = {}
        for kind, shape in self.source.shapes(self.owner).items():
            dtype = DTYPES[kind]
            empty = np.nan if dtype.kind == "f" else 0
            values = np.full((len(self.rows), *shape), empty, dtype)
            if accepted.any():
                values[accepted] = self.source.reader(self.owner, kind).read(self.rows[accepted])
            arrays[kind] = values
        self.target.commit_shard(
            self.owner,
            self.shard,
            arrays,
            images=facts,
            reasons=reasons,
            environment=environment,
        )

    def _facts(self) -> tuple[ImageFacts, dict[int, str], dict[str, str]]:
        """What the records of the source say of the rows: images, reasons by slot, environment."""
        records = self.source.commits(self.owner)
        shard_rows = self.source.info.shard_rows
        places = [(records[row // shard_rows], row % shard_rows) for row in self.rows.tolist()]
        images = ImageFacts(
            sha256=tuple(record.images.sha256[slot] for record, slot in places),
            size=tuple(record.images.size[slot] for record, slot in places),
            box=tuple(record.images.box[slot] for record, slot in places),
        )
        reasons = {
            new: record.reasons[slot]
            for new, (record, slot) in enumerate(places)
            if slot in record.reasons
        }
        environment: dict[str, str] = {}
        for record in {record.shard: record for record, _ in places}.values():
            for key, value in record.environment.items():
                if value not in environment.setdefault(key, value).split(" | "):
                    environment[key] += f" | {value}"
        return images, reasons, environment


def renumbered(cache: Cache, record: CommitRecord, shard: int) -> CommitRecord:
    """The record of the same files under another number."""
    files = {new: record.files[old] for old, new in _paths(cache, record, shard)}
    return replace(record, shard=shard, start=shard * cache.info.shard_rows, files=files)


def copy_shard(source: Cache, target: Cache, record: CommitRecord, shard: int) -> None:
    """Copy a shard to the byte under the number ``shard``, its record last.

    CorruptCache, naming the file, when it is not the one that was committed.
    """
    for old, new in _paths(source, record, shard):
        data = source.files.read(old)
        if hashlib.sha256(data).hexdigest() != record.files[old][1]:
            raise CorruptCache(
                f"{source.files.where(old)} is not the file that was committed; nothing was copied "
                f"from it. See `phistill verify {source.location}`, mend it with `phistill extract "
                f"IMAGES --cache {source.location} --repair`, and copy again."
            )
        target.files.publish(new, [data])
    moved = renumbered(source, record, shard)
    target.files.create(names.commit(record.owner, shard), moved.to_bytes())


def _paths(cache: Cache, record: CommitRecord, shard: int) -> Iterator[tuple[str, str]]:
    """Each file of a shard, and its path under another number."""
    for kind, shape in cache.shapes(record.owner).items():
        old = names.shard(record.owner, kind, record.shard, 1 + len(shape))
        yield old, names.shard(record.owner, kind, shard, 1 + len(shape))


def _tasks(source: Cache, target: Cache, part: Part) -> Iterator[_Task]:
    shard_rows = source.info.shard_rows
    for owner in target.owners:
        records = source.commits(owner)
        for first in range(0, len(part.rows), shard_rows):
            rows = part.rows[first : first + shard_rows]
            record = records[int(rows[0]) // shard_rows]
            whole = record if _is_run(rows, record.start, record.num_rows) else None
            shard = (part.start + first) // shard_rows
            yield _Task(source, target, owner, shard, rows, whole)


def _keep_expected(target: Cache, tasks: dict[tuple[str, int], _Task]) -> set[tuple[str, int]]:
    """What is in the copy already; records of anything else are taken back."""
    done = set()
    for owner in target.owners:
        for name in target.files.names_in(names.commits(owner)):
            stem = name.partition(".")[0]
            task = tasks.get((owner, int(stem))) if stem.isdigit() else None
            if task is not None and name.endswith(".json") and _is_there(target, task):
                done.add((owner, task.shard))
            else:
                target.files.delete(f"{names.commits(owner)}/{name}")
    return done


def _is_there(target: Cache, task: _Task) -> bool:
    try:
        record = target.read_commit(task.owner, task.shard)
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


def _in_threads(tasks: Sequence[_Task], workers: int) -> Iterator[_Task]:
    """Run tasks and give each back when it is done; the first failure stops what has not begun."""
    with ThreadPoolExecutor(workers, "copy") as pool:
        pending: set[Future[_Task]] = set()
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


def refuse_other_content(source: Cache, found: Cache, layout: Sequence[Part], cure: str) -> None:
    """CacheMismatch naming what ``found``, which has rows as ``layout`` or its first parts say, has
    instead of the source's teachers and images."""
    other = f"{found.location} holds another cache than {source.location}"
    for name in found.teachers:
        if name not in source.teachers:
            raise CacheMismatch(f"{other}: teacher {name!r} is not in the latter. {cure}")
        if found.teacher(name) != source.teacher(name):
            raise CacheMismatch(f"{other}: its teacher {name!r} is not the same. {cure}")
    theirs: Any = found.index()
    index: Any = source.index()
    rows = np.concatenate([part.rows for part in layout])[: theirs.num_rows]
    ours = index.take(pa.array(np.searchsorted(index["row"].to_numpy(), rows)))
    if all(ours[key].equals(theirs[key]) for key in INDEX_COLUMNS[1:]):
        return
    lines = [table.select(INDEX_COLUMNS[1:]).to_pylist() for table in (ours, theirs)]
    here, there = next((a, b) for a, b in zip(*lines, strict=True) if a != b)
    if here["id"] == there["id"]:
        raise CacheMismatch(
            f"{other}: of image {here['id']!r} the index says {there} there, {here} here. {cure}"
        )
    raise CacheMismatch(
        f"{other}: image {there['id']!r} is there in the place of {here['id']!r}. {cure}"
    )


def require_outside(place: str, cache: Cache) -> None:
    """UsageError for an absolute path or URL inside a cache: it would become a part of it."""
    if place.startswith(cache.files.absolute.rstrip("/") + "/"):
        raise UsageError(f"{place} lies inside {cache.location}. Choose a path outside.")


def require_own_place(files: Files, source: Cache) -> None:
    """UsageError when a place without a cache is no place for a copy of ``source``: inside it, or
    with anything there but an unfinished copy."""
    require_outside(files.absolute, source)
    found = files.names_in("")
    if names.COMMITS in found and MARK not in found:
        raise UsageError(
            f"{files.location} holds the shards of a cache whose {names.ROOT} was lost. Put it "
            "back, or choose a path that does not exist yet."
        )
    others = [name for name in found if name not in OURS and not name.endswith(TEMPORARY_SUFFIX)]
    if isinstance(files, LocalFiles) and Path(files.root).is_file():
        raise UsageError(f"{files.location} is a file. Choose a folder that does not exist yet.")
    if others:
        raise UsageError(
            f"{files.location} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )
