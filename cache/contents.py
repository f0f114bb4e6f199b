"""What a cache holds and which rows may be used: everything of a cache that only reads.

Everything that is believed comes from three places: the root's attributes (segments, teachers), the
commit records, and the facts of images that these name. A file that no record names does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from phistill.display import Table, facts_html, frame
from phistill.errors import (
    CorruptCache,
    IncompleteCache,
    UsageError,
    did_you_mean,
    remedy,
    repair_text,
)

from .codes.codec import RowCodec
from .codes.decoded import DecodedReader
from .codes.stored import read_codec
from .committed.catalogue import RESTORE, Catalogue
from .committed.commits import Commits
from .committed.row_facts import RowFacts
from .format import names
from .format.arrays import (
    ArrayLayout,
    ShardFiles,
    array_document,
    group_attributes,
    same_array,
)
from .format.facts import ImageFacts
from .format.info import CacheInfo, TeacherInfo
from .format.json_document import MAX_DOCUMENT_BYTES
from .format.record import CommitRecord
from .format.split import HELDOUT, TRAIN, Split
from .reader import ArrayReader, RowReader
from .rows import check_split, eligible_rows
from .segments import Index
from .storage.files import Files
from .storage.local_files import LocalFiles
from .storage.open_files import open_files

if TYPE_CHECKING:
    import pandas as pd

SPLITS = (None, TRAIN, HELDOUT)
"""What the index may say of a row's side."""


class Contents:
    """What a cache holds, as its root and its commit records say."""

    def __init__(self, location: str | Path | Files) -> None:
        self._attach(open_files(location))
        self.refresh()

    def _attach(self, files: Files) -> None:
        self.files = files
        self.catalogue = Catalogue(files)
        self._teachers: dict[str, TeacherInfo] = {}
        self._codecs: dict[str, RowCodec] = {}
        self._splits: dict[str, NDArray[np.int8]] = {}
        self._index = Index(files)
        self._version: Any = None

    def __reduce__(self) -> tuple[type[Contents], tuple[Files]]:
        return type(self), (self.files,)

    def __repr__(self) -> str:
        kind, teachers = type(self).__name__, list(self.teachers)
        return f"{kind}({self.location!r}, rows={self.info.num_real_rows}, teachers={teachers})"

    def _repr_html_(self) -> str:
        """Rows, pixels and finished shards, and a line for each teacher."""
        facts: dict[str, object] = {"rows": self.info.num_real_rows, "px": self.info.pixel_size}
        facts |= {f"shards of {name}": len(self.stored_shards(name)) for name in self.teachers}
        teachers = Table(map(self.teacher, self.teachers))
        return facts_html(f"Cache {self.location}", facts) + teachers._repr_html_()

    def to_pandas(self) -> pd.DataFrame:
        """A line per row: its number and what the index knows of its image, all rows in memory;
        UsageError without pandas."""
        return frame(self.index().to_pylist())

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
        self.catalogue.forget()

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
        """Row shape of each array an owner stores: pixels, kinds of features, or their codes."""
        if owner == names.PIXELS:
            if not self.info.pixel_size:
                raise UsageError(
                    f"{self.location} stores no pixels; it was made with pixel_size=0."
                )
            return {names.PIXELS: (self.info.pixel_size, self.info.pixel_size, 3)}
        return self.teacher(owner).arrays

    def codec(self, teacher: str, kind: str) -> RowCodec | None:
        """The codec of a kind that is stored as codes; None for one that is stored as it is.

        CorruptCache when its file is not the one that the teacher's group names.
        """
        info = self.teacher(teacher)
        stored = info.codecs.get(kind)
        if stored is None:
            return None
        if stored.sha256 not in self._codecs:
            path, row_shape = names.codec(teacher, kind), info.row_shape(kind)
            self._codecs[stored.sha256] = read_codec(self.files, path, stored, row_shape)
        return self._codecs[stored.sha256]

    def codecs(self, teacher: str) -> dict[str, RowCodec]:
        """By kind, those of a teacher."""
        found = {kind: self.codec(teacher, kind) for kind in self.teacher(teacher).codecs}
        return {kind: codec for kind, codec in found.items() if codec is not None}

    def index(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One line per row, ascending: row, id, view, uri, offset, length, label?, split?, or some
        of these ``columns``."""
        return self._index.table(self.info, columns)

    def index_columns(self) -> list[str]:
        """Names of the columns of the index, of which no line is read."""
        return self._index.column_names(self.info)

    def lines(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """What the index says of ``rows`` (n,), in this order; only what they need is read."""
        return self._index.lines(self.info, rows, columns)

    def num_images(self) -> int:
        """Images that the rows show; of caches with one view no line of the index is read."""
        if len(self.info.views) == 1:
            return self.info.num_real_rows
        return int(pc.count_distinct(self.index(["id"])["id"]).as_py())

    def image_id(self, row: int) -> str:
        """What the image of a row is called."""
        return str(self.lines(np.array([row]), ["id"])["id"][0].as_py())

    def given_split(self, shard: int) -> list[str | None]:
        """The split that came with each row of a shard; None where none did."""
        start, stop = self.info.shard_range(shard)
        number = self.info.segment_of(start)
        assert number is not None, "every shard belongs to a segment"
        segment = self.info.segments[number]
        if segment.index_sha256 not in self._splits:  # a byte for each row, for every shard to come
            file = self._index.segment(number, segment)
            known = "split" in file.column_names
            splits = file.table(["split"])["split"].to_pylist() if known else [None]
            if unknown := set(splits) - set(SPLITS):
                raise CorruptCache(
                    f"{self.files.where(names.index(number))} says split={unknown.pop()!r}; "
                    f"{TRAIN} and {HELDOUT} are known. Make the cache again."
                )
            codes = np.array([SPLITS.index(split) for split in splits], np.int8)
            self._splits[segment.index_sha256] = np.broadcast_to(codes, segment.num_rows)
        codes = self._splits[segment.index_sha256]
        return [SPLITS[code] for code in codes[start - segment.start : stop - segment.start]]

    def commits(self, owner: str) -> Commits:
        """Commit records by shard. Records already read are kept while their files are there; new
        ones are looked up.

        Those of segments that were added since the root was read are for who reads it again.
        """
        return self.catalogue.commits(owner, self.info, self.paths(owner))

    def committed(self, owner: str, shard: int) -> CommitRecord | None:
        """The commit record of one shard, None when there is none."""
        return self.catalogue.committed(owner, shard, self.info, self.paths(owner))

    def read_commit(self, owner: str, shard: int) -> CommitRecord:
        """One commit record, read again; CorruptCache when it is damaged or another shard's,
        FileNotFoundError when there is none."""
        self.catalogue.forget_records(owner, [shard])
        record = self.committed(owner, shard)
        if record is None:
            raise FileNotFoundError(f"{owner} has no commit record of shard {shard}.")
        return record

    def _look(self, owner: str, again: bool) -> tuple[CacheInfo, Commits]:
        """What is known of an owner's shards now, ``again`` where others may have written."""
        if again:
            self.catalogue.look_again()
        return self.info, self.commits(owner)

    def layouts(self, owner: str) -> dict[str, ArrayLayout]:
        """In which files the rows of each of an owner's arrays lie, by kind."""
        return {
            kind: ArrayLayout.of(self.info, owner, kind, shape)
            for kind, shape in self.shapes(owner).items()
        }

    def paths(self, owner: str) -> ShardFiles:
        """The files of an owner's shards."""
        return ShardFiles(self.info, list(self.layouts(owner).values()))

    def block_rows(self, teachers: Sequence[str]) -> int:
        """Rows that are read together in block order: a file of the largest array of the pixels
        and of ``teachers``."""
        owners = (*self._pixels, *teachers)
        return min(
            (layout.file_rows for owner in owners for layout in self.layouts(owner).values()),
            default=self.info.shard_rows,
        )

    def stored_shards(self, owner: str) -> NDArray[np.int64]:
        """Shards that have a commit record by name, those that the cache does not have too."""
        return self.catalogue.stored_shards(owner, self.info, self.paths(owner))

    def stored_facts(self) -> NDArray[np.int64]:
        """Shards that have facts by name, those that the cache does not have too."""
        return self.catalogue.stored_facts(self.info)

    def facts_of(self, shard: int) -> ImageFacts | None:
        """What is known of a shard's images; None before its first commit."""
        return self.catalogue.facts_of(shard, self.info)

    def committed_facts(self, record: CommitRecord) -> ImageFacts:
        """What is known of the images that a shard was committed with; CorruptCache where that is
        lost."""
        facts = self.facts_of(record.shard)
        if facts is not None and facts.digest != record.facts:
            self.catalogue.forget_facts([record.shard])
            facts = self.facts_of(record.shard)
        if facts is None or facts.digest != record.facts:
            raise self._lost_facts(record.owner, record.shard)
        return facts

    def facts(self, owners: Sequence[str] | None = None) -> RowFacts:
        """What is known of every row's image.

        CorruptCache where a shard that one of ``owners`` (None: all) committed does not stand on
        the facts that are there.
        """
        chosen = self.owners if owners is None else owners
        return self._facts_under({owner: self.commits(owner) for owner in chosen})

    def _facts_under(self, records: Mapping[str, Commits]) -> RowFacts:
        facts = self.catalogue.facts(self.info)
        wrong = _first_other(facts, records)
        if wrong:  # they may have been read before another writer put these there
            self.catalogue.forget_facts([wrong[1]])
            facts = self.catalogue.facts(self.info)
            wrong = _first_other(facts, records)
        if wrong:
            raise self._lost_facts(*wrong)
        return facts

    def _lost_facts(self, owner: str, shard: int) -> CorruptCache:
        what = "are missing" if self.facts_of(shard) is None else "are others"
        return CorruptCache(
            f"{self.files.where(names.facts(shard))}: the facts of the images that {owner} was "
            f"committed with {what} (shard {shard}). {repair_text(self.location)}"
        )

    def missing_shards(self, owner: str) -> list[int]:
        """Shards of an owner that are not committed yet, ascending."""
        done = self.catalogue.shards(owner, self.info, self.paths(owner))
        missing: list[int] = np.setdiff1d(self.info.shard_numbers, done).tolist()
        return missing

    def require_complete(self, teachers: Sequence[str] | None = None) -> None:
        """Raise IncompleteCache, naming the command that goes on, when shards are missing."""
        for owner in (*self.owners,) if teachers is None else (*self._pixels, *teachers):
            if missing := len(self.missing_shards(owner)):
                total = len(self.info.shard_numbers)
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
        check_split(split)
        for name in chosen:
            self.teacher(name)
        owners = {owner: self.commits(owner) for owner in (*self._pixels, *chosen)}
        eligible = eligible_rows(self.info, list(owners.values()))
        if split != "all":
            eligible &= self._facts_under(owners).heldout == (split == HELDOUT)
        return np.flatnonzero(eligible).astype(np.int64)

    @property
    def _pixels(self) -> tuple[str, ...]:
        return (names.PIXELS,) if self.info.pixel_size else ()

    def reader(self, owner: str, kind: str, *, unbiased: bool = False) -> RowReader:
        """A reader of the pixels or of one kind of features, decoded where codes are stored.

        ``unbiased`` decodes for training: on average right, not nearest (RowCodec.decode).
        Codes themselves are read from ``names.codes(kind)``. UsageError for what is not there.
        """
        if owner == names.PIXELS or (codec := self.codec(owner, kind)) is None:
            return self.array_reader(owner, kind)
        codes = self.array_reader(owner, names.codes(kind))
        return DecodedReader(codes, kind, codec, unbiased=unbiased)

    def array_reader(self, owner: str, kind: str) -> ArrayReader:
        """A reader of one array as it is stored; its zarr.json must say what the settings say."""
        shapes = self.shapes(owner)
        if kind not in shapes:
            raise UsageError(f"{owner} has no {kind}; it has {', '.join(shapes)}.")
        if not self.files.is_far:  # it is for zarr; where it costs a request, `verify` looks at it
            path = names.metadata(names.array(owner, kind))
            expected = self.array_document(owner, kind)
            with remedy(RESTORE, CorruptCache):
                same_array(self.files.read(path, max_bytes=2**20), expected, self.files.where(path))
        return ArrayReader(
            self.files,
            ArrayLayout.of(self.info, owner, kind, shapes[kind]),
            look=lambda again: self._look(owner, again),
        )


def _first_other(facts: RowFacts, records: Mapping[str, Commits]) -> tuple[str, int] | None:
    """The first owner and shard whose record stands on other facts than those known."""
    for owner, commits in records.items():
        if (others := facts.others(commits.shards, commits.facts)).size:
            return owner, int(others[0])
    return None
