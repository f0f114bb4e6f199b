"""What a cache holds and which rows may be used: everything of a cache that only reads.

Everything that is believed comes from two places: the root's attributes (segments, teachers) and
the commit records. A file that no record names does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import (
    CorruptCache,
    IncompleteCache,
    UsageError,
    did_you_mean,
    remedy,
    repair_text,
)

from .format import names
from .format.arrays import array_document, group_attributes, same_array
from .format.info import DTYPES, CacheInfo, Segment, TeacherInfo
from .format.json_document import MAX_DOCUMENT_BYTES
from .format.record import CommitRecord
from .format.split import HELDOUT, TRAIN, Split
from .reader import ArrayReader
from .rows import eligible_rows
from .segments import read_index, read_segment
from .storage.files import Files
from .storage.local_files import LocalFiles
from .storage.open_files import open_files

SPLITS = (None, TRAIN, HELDOUT)
"""What the index may say of a row's side."""

RESTORE = "Restore it from a copy."
"""What helps with any document."""


class Contents:
    """What a cache holds, as its root and its commit records say."""

    def __init__(self, location: str | Path | Files) -> None:
        self._attach(open_files(location))
        self.refresh()

    def _attach(self, files: Files) -> None:
        self.files = files
        self._commits: dict[str, dict[int, CommitRecord]] = {}
        self._teachers: dict[str, TeacherInfo] = {}
        self._splits: dict[str, NDArray[np.int8]] = {}
        self._index: tuple[tuple[Segment, ...], pa.Table] | None = None
        self._version: Any = None

    def __reduce__(self) -> tuple[type[Contents], tuple[Files]]:
        return type(self), (self.files,)

    def __repr__(self) -> str:
        kind, teachers = type(self).__name__, list(self.teachers)
        return f"{kind}({self.location!r}, rows={self.num_rows}, teachers={teachers})"

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
        """Read the root's attributes again, and forget what was read of teachers and shards."""
        data, self._version = self.files.read_version(names.ROOT, max_bytes=MAX_DOCUMENT_BYTES)
        with remedy(RESTORE, CorruptCache):
            self.info = group_attributes(data, CacheInfo, self.files.where(names.ROOT))
        self._teachers.clear()
        self._commits.clear()

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
        data = self.files.read(path, max_bytes=MAX_DOCUMENT_BYTES)
        with remedy(RESTORE, CorruptCache):
            return group_attributes(data, TeacherInfo, self.files.where(path))

    def array_document(self, owner: str, kind: str, num_rows: int | None = None) -> bytes:
        """The zarr.json that an array must have, at the cache's length or another."""
        return array_document(self.info, kind, self.shapes(owner)[kind], num_rows)

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

    def given_split(self, shard: int) -> list[str | None]:
        """The split that came with each row of a shard; None where none did."""
        start, stop = self.info.shard_range(shard)
        number, segment = next(
            (number, segment)
            for number, segment in enumerate(self.info.segments)
            if segment.start <= start < segment.start + segment.num_rows
        )
        if segment.index_sha256 not in self._splits:  # a byte for each row, for every shard to come
            table: Any = read_segment(self.files, number, segment)
            splits = table["split"].to_pylist() if "split" in table.column_names else [None]
            if unknown := set(splits) - set(SPLITS):
                raise CorruptCache(
                    f"{self.files.where(names.index(number))} says split={unknown.pop()!r}; "
                    f"{TRAIN} and {HELDOUT} are known. Make the cache again."
                )
            codes = np.array([SPLITS.index(split) for split in splits], np.int8)
            self._splits[segment.index_sha256] = np.broadcast_to(codes, segment.num_rows)
        codes = self._splits[segment.index_sha256]
        return [SPLITS[code] for code in codes[start - segment.start : stop - segment.start]]

    def commits(self, owner: str) -> dict[int, CommitRecord]:
        """Commit records by shard. Records already read are kept while their files are there; new
        ones are looked up.

        Those of segments that were added since the root was read are for who reads it again.
        """
        folder, exist = names.commits(owner), set(self.info.shards())
        named = (name.removesuffix(".json") for name in self.files.names_in(folder))
        shards = [int(stem) for stem in named if stem.isdigit() and int(stem) in exist]
        before = self._commits.get(owner, {})
        known = {shard: before[shard] for shard in shards if shard in before}

        def learn(shard: int) -> None:
            known[shard] = self.read_commit(owner, shard)

        self.files.each(learn, [shard for shard in shards if shard not in known])
        self._commits[owner] = known
        return dict(sorted(known.items()))

    def committed(self, owner: str, shard: int) -> CommitRecord | None:
        """The commit record of one shard, None when there is none."""
        known = self._commits.setdefault(owner, {})
        try:
            if shard not in known:
                known[shard] = self.read_commit(owner, shard)
            elif not self.files.exists(names.commit(owner, shard)):  # taken back by another
                del known[shard]
        except FileNotFoundError:
            return None
        return known.get(shard)

    def read_commit(self, owner: str, shard: int) -> CommitRecord:
        """One commit record from its file; CorruptCache when it is damaged or another shard's."""
        path = names.commit(owner, shard)
        data = self.files.read(path, max_bytes=MAX_DOCUMENT_BYTES)
        where = self.files.where(path)
        with remedy(f"{RESTORE} {repair_text(self.location)}", CorruptCache):
            record = CommitRecord.from_bytes(data, where)
            start, stop = self.info.shard_range(shard)
            expected = (owner, shard, start, stop - start)
            if (record.owner, record.shard, record.start, record.num_rows) != expected:
                raise CorruptCache(f"{where} is the record of another shard.")
            if set(record.files) != set(self.shard_paths(owner, shard).values()):
                raise CorruptCache(f"{where} names other files than its shard has.")
        return record

    def shard_paths(self, owner: str, shard: int) -> dict[str, str]:
        """The file of each kind of an owner's shard."""
        return {
            kind: names.shard(owner, kind, shard, 1 + len(shape))
            for kind, shape in self.shapes(owner).items()
        }

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
        UsageError for a split or a teacher that is not known.
        """
        chosen = self.teachers if teachers is None else teachers
        for name in chosen:
            self.teacher(name)
        owners = [self.commits(owner) for owner in (*self._pixels, *chosen)]
        return eligible_rows(self.info, owners, split)

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
        with remedy(RESTORE, CorruptCache):
            same_array(self.files.read(path, max_bytes=2**20), expected, self.files.where(path))
        return ArrayReader(
            self.files,
            owner,
            kind,
            row_shape=shapes[kind],
            dtype=dtype,
            look=lambda: (self.info, self.commits(owner)),
        )
