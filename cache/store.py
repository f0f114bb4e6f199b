"""A cache as an object: what it holds, which rows may be used, and how shards get in.

Everything that is believed comes from two places: the root's attributes (segments, teachers) and
the commit records. A file that no record names does not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import CorruptCache, IncompleteCache, UsageError, did_you_mean, repair_text

from .absent import no_cache
from .format import names
from .format.arrays import array_document, group_attributes, group_document, same_array
from .format.compression import encode_compressed
from .format.document import MAX_DOCUMENT_BYTES, RESTORE
from .format.index import image_id, publish_index, read_index
from .format.info import DTYPES, CacheInfo, Segment, TeacherInfo
from .format.record import CommitRecord, ImageFacts
from .format.shard import encode_shard, sha256_of
from .format.split import Split
from .reader import ArrayReader
from .rows import usable_rows
from .storage.files import Files, LocalFiles, open_files


def open(location: str | Path | Files) -> Cache:
    """Open an existing cache; UsageError when there is none at ``location``."""
    files = open_files(location)
    if files.size(names.ROOT) is None:
        raise no_cache(files)
    return Cache(files)


def exists(location: str | Path | Files) -> bool:
    """Whether there is a cache, finished or not."""
    return open_files(location).size(names.ROOT) is not None


def create(location: str | Path | Files, info: CacheInfo, index: pa.Table) -> Cache:
    """Create a cache whose first segment is ``index`` (index.INDEX_COLUMNS, one line per row).

    The root is published last: a killed ``create`` leaves a folder that is not a cache yet. Commit
    records that lie there are of other rows and must not be believed: UsageError.
    """
    files = open_files(location)
    if files.exists(names.ROOT):
        raise UsageError(f"{files.location} already exists. Choose another, or extract into it.")
    if not index.num_rows:
        raise UsageError("a cache needs at least one image.")
    if files.names_in(names.COMMITS):
        raise UsageError(
            f"{files.location} holds the shards of a cache but no {names.ROOT}: it was lost, or a "
            f"copy stopped. Put {names.ROOT} back, repeat the copy, or choose another place."
        )
    segment = publish_index(files, index, number=0, start=0, shard_rows=info.shard_rows)
    info = replace(info, segments=(segment,))
    files.publish(names.metadata(names.TEACHERS), [group_document()])
    if info.pixel_size:
        files.publish(names.metadata(names.PIXELS), [_pixels_document(info)])
    files.create(names.ROOT, group_document(info.to_dict()))
    return Cache(files)


class Cache:
    """A cache. Cheap to open; picklable (opened again by its files)."""

    def __init__(self, location: str | Path | Files) -> None:
        self._attach(open_files(location))
        self.refresh()

    def _attach(self, files: Files) -> None:
        self.files = files
        self._commits: dict[str, dict[int, CommitRecord]] = {}
        self._teachers: dict[str, TeacherInfo] = {}
        self._index: tuple[tuple[Segment, ...], pa.Table] | None = None
        self._version: Any = None

    def __reduce__(self) -> tuple[type[Cache], tuple[Files]]:
        return Cache, (self.files,)

    def __repr__(self) -> str:
        return f"Cache({self.location!r}, rows={self.num_rows}, teachers={list(self.teachers)})"

    @property
    def location(self) -> str:
        """Where it lies, as it was typed; for messages."""
        return self.files.location

    @property
    def path(self) -> Path:
        """The folder of a cache on a local file system; UsageError for another."""
        if not isinstance(self.files, LocalFiles):
            raise UsageError(f"{self.location} is not a folder on a local file system.")
        return self.files.root

    def refresh(self) -> None:
        """Read the root's attributes again."""
        data, self._version = self.files.read_version(names.ROOT, max_bytes=MAX_DOCUMENT_BYTES)
        self._teachers.clear()
        attributes = group_attributes(data, self.files.where(names.ROOT))
        try:
            self.info = CacheInfo.from_dict(attributes)
        except (TypeError, KeyError, AttributeError, UsageError) as error:
            raise CorruptCache(
                f"{self.files.where(names.ROOT)} does not describe a cache."
            ) from error

    @property
    def num_rows(self) -> int:
        """Length of every array; rows between segments are padding and never committed."""
        return self.info.num_rows

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.info.teachers

    @property
    def owners(self) -> tuple[str, ...]:
        """Everything that has shards: the pixels, then each teacher."""
        return ((names.PIXELS,) if self.info.pixel_size else ()) + self.teachers

    def teacher(self, name: str) -> TeacherInfo:
        """A teacher's shapes and fingerprint; UsageError lists the teachers there are."""
        if name not in self.teachers:
            known = ", ".join(self.teachers) or "none yet"
            raise UsageError(
                f"{self.location} has no teacher {name!r}; it has: {known}."
                f"{did_you_mean(name, self.teachers)}"
            )
        if name not in self._teachers:
            self._teachers[name] = self.read_teacher(name)
        return self._teachers[name]

    def read_teacher(self, name: str) -> TeacherInfo:
        """A teacher as its group says now."""
        path = names.metadata(names.group(name))
        attributes = group_attributes(
            self.files.read(path, max_bytes=MAX_DOCUMENT_BYTES), self.files.where(path)
        )
        return TeacherInfo.from_dict(attributes)

    def array_document(self, owner: str, kind: str, num_rows: int | None = None) -> bytes:
        """The zarr.json that an array must have, at the cache's length or another."""
        return array_document(
            self.num_rows if num_rows is None else num_rows,
            self.shapes(owner)[kind],
            DTYPES[kind],
            self.info.shard_rows,
            self.info.compression,
        )

    def shapes(self, owner: str) -> dict[str, tuple[int, ...]]:
        """Row shape of each kind an owner stores."""
        if owner == names.PIXELS:
            if not self.info.pixel_size:
                raise UsageError(
                    f"{self.location} stores no pixels; it was made with pixel_size=0."
                )
            return {names.PIXELS: (self.info.pixel_size, self.info.pixel_size, 3)}
        teacher = self.teacher(owner)
        return {kind: teacher.row_shape(kind) for kind in teacher.kinds}

    def index(self) -> pa.Table:
        """One line per row, ascending: row, id, view, uri, offset, length, label?, split?."""
        if isinstance(self.files, LocalFiles):  # in the page cache after the first time
            return read_index(self.files, self.info.segments)
        if self._index is None or self._index[0] != self.info.segments:
            table = read_index(self.files, self.info.segments)
            self._index = (self.info.segments, table)
        return self._index[1]

    def commits(self, owner: str) -> dict[int, CommitRecord]:
        """Commit records by shard. Records already read are kept; new ones are looked up.

        Those of segments that were added since the root was read are for who reads it again.
        """
        known = self._commits.setdefault(owner, {})
        folder, exist = names.commits(owner), set(self.info.shards())
        named = (name.removesuffix(".json") for name in self.files.names_in(folder))
        shards = [int(stem) for stem in named if stem.isdigit() and int(stem) in exist]

        def learn(shard: int) -> None:
            known[shard] = self.read_commit(owner, shard)

        self.files.each(learn, [shard for shard in shards if shard not in known])
        return dict(sorted(known.items()))

    def committed(self, owner: str, shard: int) -> CommitRecord | None:
        """The commit record of one shard, None when there is none."""
        known = self._commits.setdefault(owner, {})
        if shard not in known:
            try:
                known[shard] = self.read_commit(owner, shard)
            except FileNotFoundError:
                return None
        return known[shard]

    def read_commit(self, owner: str, shard: int) -> CommitRecord:
        """One commit record from its file; CorruptCache when it is damaged or another shard's."""
        path = names.commit(owner, shard)
        data = self.files.read(path, max_bytes=MAX_DOCUMENT_BYTES)
        record = CommitRecord.from_bytes(
            data, self.files.where(path), f"{RESTORE} {repair_text(self.location)}"
        )
        start, stop = self.info.shard_range(shard)
        expected = (owner, shard, start, stop - start)
        if (record.owner, record.shard, record.start, record.num_rows) != expected:
            raise CorruptCache(f"{self.files.where(path)} is the record of another shard.")
        if not set(record.files) <= names.shard_paths(owner, shard):
            raise CorruptCache(f"{self.files.where(path)} names files that are not its shard's.")
        return record

    def missing_shards(self, owner: str) -> list[int]:
        """Shards of an owner that are not committed yet, ascending."""
        done = self.commits(owner)
        return [shard for shard in self.info.shards() if shard not in done]

    def require_complete(self, teachers: Sequence[str] | None = None) -> None:
        """Raise IncompleteCache, naming the command that goes on, when shards are missing."""
        for owner in (*self.owners,) if teachers is None else (*self._pixels, *teachers):
            if missing := len(self.missing_shards(owner)):
                total = len(self.info.shards())
                raise IncompleteCache(
                    f"{self.location} is unfinished: {owner} has {total - missing} of {total} "
                    f"shards. Finish it with `{self.finishing(owner)}`."
                )

    def finishing(self, owner: str) -> str:
        """The command that makes the missing shards of an owner."""
        teacher = owner if owner in self.teachers else next(iter(self.teachers), "")
        imported = teacher and self.teacher(teacher).is_imported
        command = "import-features FEATURES" if imported else "extract IMAGES"
        return f"phistill {command} --cache {self.location}"

    def rows(
        self, teachers: Sequence[str] | None = None, split: Split = "train"
    ) -> NDArray[np.int64]:
        """Rows (n,), ascending, that are committed and accepted for the pixels and every teacher.

        ``teachers=None`` asks for all of them. ``split`` is ``train``, ``heldout`` or ``all``.
        """
        return usable_rows(self, self.teachers if teachers is None else teachers, split)

    @property
    def _pixels(self) -> tuple[str, ...]:
        return (names.PIXELS,) if self.info.pixel_size else ()

    def reader(self, owner: str, kind: str) -> ArrayReader:
        """A reader of one array; the array's zarr.json must say what the settings say."""
        shapes = self.shapes(owner)
        if kind not in shapes:
            raise UsageError(f"{owner} has no {kind}; it has {', '.join(shapes)}.")
        dtype = DTYPES[kind]
        path = names.metadata(names.array(owner, kind))
        expected = self.array_document(owner, kind)
        same_array(self.files.read(path, max_bytes=2**20), expected, self.files.where(path))
        return ArrayReader(
            self.files,
            owner,
            kind,
            row_shape=shapes[kind],
            dtype=dtype,
            shard_rows=self.info.shard_rows,
            num_rows=self.num_rows,
            removed=self.info.removed,
            compressed=bool(self.info.compression),
            commits=lambda: self.commits(owner),
        )

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Hold the cache for writing, or only ``shards`` of it; LockHeld names who has it."""
        return self.files.writing(shards)

    def add_teacher(self, teacher: TeacherInfo) -> None:
        """Publish a teacher's group and arrays, then name it in the root. Rows come by shards."""
        if teacher.name in self.teachers:
            raise UsageError(f"{self.location} already has a teacher {teacher.name!r}.")
        for kind in teacher.kinds:
            shape, info = teacher.row_shape(kind), self.info
            document = array_document(
                info.num_rows, shape, DTYPES[kind], info.shard_rows, info.compression
            )
            self.files.publish(names.metadata(names.array(teacher.name, kind)), [document])
        self.files.publish(
            names.metadata(names.group(teacher.name)), [group_document(teacher.to_dict())]
        )
        self.publish_root(replace(self.info, teachers=(*self.teachers, teacher.name)))

    def commit_shard(
        self,
        owner: str,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        *,
        images: ImageFacts,
        reasons: Mapping[int, str],
        environment: Mapping[str, str],
    ) -> CommitRecord:
        """Write a shard whole: every file, each durable before the next, then the commit record.

        ``arrays`` maps each kind to (n, *row_shape), n the rows that exist in the shard.
        """
        start, stop = self.info.shard_range(shard)
        shapes = self.shapes(owner)
        if set(arrays) != set(shapes):
            raise ValueError(f"{owner} needs {sorted(shapes)}, got {sorted(arrays)}.")
        for other in self.owners:
            if other != owner and (record := self.committed(other, shard)) is not None:
                record.require_images(images, owner, lambda row: image_id(self.index(), row))
        files: dict[str, tuple[int, str]] = {}
        for kind, values in arrays.items():
            wanted = (stop - start, *shapes[kind])
            if values.shape != wanted or values.dtype != DTYPES[kind]:
                raise ValueError(
                    f"{owner}/{kind}, shard {shard}: got {values.dtype} {values.shape}, "
                    f"wanted {DTYPES[kind]} {wanted}."
                )
            relative = names.shard(owner, kind, shard, values.ndim)
            encoded = self._encode(owner, kind, values)
            with ThreadPoolExecutor(1, "sha256") as hashing:  # as slow as a disk: beside, not after
                digest = hashing.submit(sha256_of, encoded)
                self.files.publish(relative, encoded)
            files[relative] = (sum(buffer.nbytes for buffer in encoded), digest.result())
        record = CommitRecord(
            owner=owner,
            shard=shard,
            start=start,
            num_rows=stop - start,
            files=files,
            images=images,
            reasons=dict(sorted(reasons.items())),
            environment=dict(environment),
        )
        self.files.create(names.commit(owner, shard), record.to_bytes())
        self._commits.setdefault(owner, {})[shard] = record
        return record

    def _encode(self, owner: str, kind: str, values: NDArray[Any]) -> list[memoryview]:
        if not self.info.compression:
            return encode_shard(values, self.info.shard_rows)
        return [encode_compressed(values, self.array_document(owner, kind, len(values))).data]

    def forget_shard(self, owner: str, shard: int) -> None:
        """Take back a commit: the shard counts as missing and can be extracted again."""
        self.files.delete(names.commit(owner, shard))
        self._commits.get(owner, {}).pop(shard, None)

    def restore_metadata(self, owner: str) -> None:
        """Publish the zarr.json of an owner's arrays again, from the cache's settings."""
        for kind in self.shapes(owner):
            document = self.array_document(owner, kind)
            self.files.publish(names.metadata(names.array(owner, kind)), [document])

    def publish_root(self, info: CacheInfo) -> None:
        """Publish other settings: a teacher, a segment or removed rows more or less."""
        document = group_document(info.to_dict())
        self._version = self.files.replace(names.ROOT, document, self._version)
        self.info = info
        self._teachers.clear()

    def write_small(self, relative: str, data: bytes) -> None:
        """Publish a small file below the cache (statistics, normalizers)."""
        self.files.publish(relative, [data])

    def digest(self) -> str:
        """sha256 (hex) over every file's path and content, the lock left out."""
        total = hashlib.sha256()
        for relative in self.files.walk():
            if relative.partition("/")[0] not in names.WRITERS:
                content = hashlib.sha256(self.files.read(relative)).hexdigest()
                total.update(f"{relative}\0{content}\n".encode())
        return total.hexdigest()


def _pixels_document(info: CacheInfo) -> bytes:
    shape = (info.pixel_size, info.pixel_size, 3)
    return array_document(
        info.num_rows, shape, DTYPES[names.PIXELS], info.shard_rows, info.compression
    )
