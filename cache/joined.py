"""Several caches read as one: their rows are numbered through, cache after cache.

Row r of cache k has the number ``starts[k] + r``. Nothing is copied; the caches must agree on what
they share, teacher by teacher and field by field. One cache is the common case of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, UsageError

from . import opening
from .codes.codec import RowCodec
from .format import names
from .format.info import TeacherInfo
from .format.split import HELDOUT, TRAIN, Split
from .readahead import ReadAhead
from .reader import RowReader
from .store import Cache

Rows = NDArray[np.int64]


class JoinedCaches:
    """One or more caches, in the order given."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches = tuple(caches)
        if not self.caches:
            raise UsageError("no cache was given.")
        _refuse_repeats(self.caches)
        lengths = [cache.num_rows for cache in self.caches]
        self.starts = tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))

    def __repr__(self) -> str:
        return f"JoinedCaches({[cache.location for cache in self.caches]})"

    def _repr_html_(self) -> str:
        return "".join(cache._repr_html_() for cache in self.caches)

    @property
    def location(self) -> str:
        """All paths, for messages."""
        return " and ".join(cache.location for cache in self.caches)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Every teacher that any of the caches has, in the order they come."""
        return tuple(dict.fromkeys(name for cache in self.caches for name in cache.teachers))

    @property
    def owners(self) -> tuple[str, ...]:
        """What all of them store: the pixels, if all have them, and the teachers."""
        pixels = all(names.PIXELS in cache.owners for cache in self.caches)
        return ((names.PIXELS,) if pixels else ()) + self.teachers

    def teacher(self, name: str) -> TeacherInfo:
        """A teacher's shapes and fingerprint, from the first cache that has it."""
        for cache in self.caches:
            if name in cache.teachers:
                return cache.teacher(name)
        known = ", ".join(self.teachers) or "none"
        raise UsageError(f"{self.location} have no teacher {name!r}; they have: {known}.")

    def shapes(self, owner: str) -> dict[str, tuple[int, ...]]:
        """Row shape of each kind an owner stores; ``require_alike`` says they agree."""
        return self.caches[0].shapes(owner)

    def require_alike(self, teachers: Sequence[str]) -> None:
        """CacheMismatch where a teacher or the side of the pixels differs, with every field.

        UsageError for a teacher that one of the caches does not have.
        """
        first = self.caches[0]
        for cache in self.caches[1:]:
            if cache.info.pixel_size != first.info.pixel_size:
                raise CacheMismatch(
                    f"{cache.location} stores pixels of side {cache.info.pixel_size}, "
                    f"{first.location} of side {first.info.pixel_size}; a batch needs one. Extract "
                    "with an equal --pixel-size."
                )
        for name in teachers:
            self._require_teacher(name)
            for cache in self.caches[1:]:
                _same_teacher(first, cache, name)

    def _require_teacher(self, name: str) -> None:
        for cache in self.caches:
            if name not in cache.teachers:
                common = [n for n in self.teachers if all(n in c.teachers for c in self.caches)]
                remedy = (
                    f"Take the common ones with --teachers {','.join(common)}, or e"
                    if common
                    else "E"
                )
                raise UsageError(
                    f"{cache.location} has no teacher {name!r}. {remedy}xtract it there: "
                    f"phistill extract IMAGES --cache {cache.location} --teacher ..."
                )

    def require_complete(self, teachers: Sequence[str] | None = None) -> None:
        """IncompleteCache when any of them misses shards."""
        for cache in self.caches:
            cache.require_complete(teachers)

    def rows(self, teachers: Sequence[str] | None = None, split: Split = "train") -> Rows:
        """Usable rows of all caches (n,), ascending, numbered through; see ``Cache.rows``."""
        parts = [
            start + cache.rows(teachers, split)
            for start, cache in zip(self.starts, self.caches, strict=True)
        ]
        return np.concatenate(parts)

    def reader(self, owner: str, kind: str, *, unbiased: bool = False) -> JoinedReader:
        """A reader of one array over all caches; see ``Cache.reader``."""
        readers = [cache.reader(owner, kind, unbiased=unbiased) for cache in self.caches]
        return JoinedReader(readers, self.starts)

    def codec(self, teacher: str, kind: str) -> RowCodec | None:
        """The codec that all caches have a kind stored with; None where one has it otherwise."""
        stored = {cache.teacher(teacher).codecs.get(kind) for cache in self.caches}
        return self.caches[0].codec(teacher, kind) if len(stored) == 1 else None

    def leaked_rows(self, teachers: Sequence[str]) -> list[Rows]:
        """Per cache, its own training rows (n,) whose image another cache holds out.

        None exist where all caches share seed and fraction and no split was given: whether an
        image is held out is then a function of its bytes. Images are told apart by their sha256.
        """
        if len(self.caches) == 1:  # no index is opened
            return [np.empty(0, np.int64)]
        infos = [cache.info for cache in self.caches]
        has_split = any("split" in cache.index_columns() for cache in self.caches)
        agree = not has_split and len({(info.seed, info.holdout) for info in infos}) == 1
        if agree:
            return [np.empty(0, np.int64) for _ in self.caches]
        sides = [
            (cache.rows(teachers, TRAIN), cache.rows(teachers, HELDOUT)) for cache in self.caches
        ]
        images = [cache.facts().images for cache in self.caches]
        heldout = [known[held] for known, (_, held) in zip(images, sides, strict=True)]
        leaked = []
        for number, (known, (train, _)) in enumerate(zip(images, sides, strict=True)):
            others = np.concatenate([*heldout[:number], *heldout[number + 1 :]])
            leaked.append(train[np.isin(known[train], others)])
        return leaked


class JoinedReader:
    """Rows of one array over several caches; see RowReader. float32 where one is decoded."""

    def __init__(self, readers: Sequence[RowReader], starts: Sequence[int]) -> None:
        self.readers = tuple(readers)
        self.row_shape = readers[0].row_shape
        self.dtype = np.result_type(*(reader.dtype for reader in readers))
        self._starts = np.asarray(starts, np.int64)

    def read(self, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values (n, *row_shape) of ``rows`` (n,), numbered through, in their order."""
        rows = np.ascontiguousarray(rows, np.int64)
        if out is None:
            out = np.empty((rows.size, *self.row_shape), self.dtype)
        cache_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number, reader in enumerate(self.readers):
            places = np.flatnonzero(cache_of == number)
            if places.size == rows.size and reader.dtype == out.dtype:
                return reader.read(rows - self._starts[number], out)
            if places.size:
                out[places] = reader.read(rows[places] - self._starts[number])
        return out


class JoinedReadAhead:
    """A ReadAhead for each of the caches."""

    def __init__(
        self, joined: JoinedCaches, readers: Sequence[JoinedReader], block_rows: Sequence[int]
    ) -> None:
        """``block_rows`` are those of each cache's order."""
        self._starts = np.asarray(joined.starts, np.int64)
        self._parts = [
            ReadAhead([reader.readers[number] for reader in readers], block_rows=rows)
            for number, rows in enumerate(block_rows)
        ]

    def expect(self, rows: Rows) -> None:
        """The blocks of ``rows`` (n,), numbered through, will be read whole before long."""
        cache_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number, part in enumerate(self._parts):
            part.expect(rows[cache_of == number] - self._starts[number])

    def close(self) -> None:
        """Ask for nothing more."""
        for part in self._parts:
            part.close()


CacheArgument = Cache | JoinedCaches | Path | str | Sequence[Cache | Path | str]
"""A cache, or several: open, or where they lie."""


def open_caches(cache: CacheArgument) -> JoinedCaches:
    """The caches, opened where they are not; one cache becomes a sequence of one."""
    if isinstance(cache, JoinedCaches):
        return cache
    several = (cache,) if isinstance(cache, Cache | Path | str) else cache
    return JoinedCaches([one if isinstance(one, Cache) else opening.open(one) for one in several])


def _refuse_repeats(caches: Sequence[Cache]) -> None:
    """UsageError where two of the caches lie in one place, however it is spelt."""
    seen: dict[object, Cache] = {}
    for cache in caches:
        first = seen.setdefault(_place(cache), cache)
        if first is not cache:
            spelt = f" ({first.location})" if first.location != cache.location else ""
            raise UsageError(
                f"{cache.location} is given twice{spelt}. Name each cache once and give it a "
                "weight."
            )


def _place(cache: Cache) -> object:
    """Equal for caches in one place: links, bind mounts and relative paths are seen through."""
    try:
        folder = Path(cache.files.absolute).stat()
    except OSError:  # an object store has no folder
        return cache.files.absolute
    return folder.st_dev, folder.st_ino


def _same_teacher(one: Cache, other: Cache, name: str) -> None:
    differing = one.teacher(name).differences(other.teacher(name).fingerprint)
    if differing:
        lines = "".join(f"\n  {k}: {a!r} -> {b!r}" for k, (a, b) in differing.items())
        raise CacheMismatch(
            f"teacher {name!r} of {other.location} is not the one of {one.location}:{lines}\n"
            "Features of different teachers cannot be learnt under one name. Extract both caches "
            "with the same teacher, or leave it out with --teachers."
        )
