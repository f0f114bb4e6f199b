"""What may lie where a copy is to go: nothing, an unfinished copy, or the same cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from phistill.errors import CacheMismatch, UsageError

from ..format import names
from ..format.index import INDEX_COLUMNS
from ..format.info import TeacherInfo
from ..storage.files import Files
from ..storage.local_files import LocalFiles
from ..storage.publish import TEMPORARY_SUFFIX
from ..store import Cache
from .layout import Part

MARK = ".copying"
"""A file of an unfinished copy: the digest of what it is a copy of."""

OURS = frozenset({"index", names.TEACHERS, names.PIXELS, *names.COMMITTED, *names.WRITERS, MARK})
"""What an unfinished copy consists of."""


def refuse_other_content(
    source: Cache,
    there: Cache,
    layout: Sequence[Part],
    coded: Mapping[str, TeacherInfo] | None = None,
) -> None:
    """CacheMismatch naming what ``there``, which has rows as ``layout`` or its first parts say, has
    instead of the source's images and teachers, of which the ``coded`` are to be stored so."""
    teachers = {name: source.teacher(name) for name in source.teachers} | dict(coded or {})
    other = f"{there.location} holds another cache than {source.location}"
    for name in there.teachers:
        if name not in source.teachers:
            raise CacheMismatch(f"{other}: teacher {name!r} is not in the latter.")
        if there.teacher(name).differences(source.teacher(name).fingerprint):
            raise CacheMismatch(f"{other}: its teacher {name!r} is not the same.")
        if there.teacher(name).codecs != teachers[name].codecs:
            raise CacheMismatch(f"{other}: teacher {name!r} is stored in other codes there.")
    theirs = there.index(INDEX_COLUMNS)
    rows = np.concatenate([part.rows for part in layout])[: theirs.num_rows]
    ours = source.lines(rows, INDEX_COLUMNS)
    if all(ours[key].equals(theirs[key]) for key in INDEX_COLUMNS[1:]):
        return
    lines = [table.select(INDEX_COLUMNS[1:]).to_pylist() for table in (ours, theirs)]
    ours_line, their_line = next((a, b) for a, b in zip(*lines, strict=True) if a != b)
    if ours_line["id"] == their_line["id"]:
        raise CacheMismatch(
            f"{other}: of image {ours_line['id']!r} the index says {their_line} there, "
            f"{ours_line} here."
        )
    raise CacheMismatch(
        f"{other}: image {their_line['id']!r} is there in the place of {ours_line['id']!r}."
    )


def require_outside(place: str, cache: Cache) -> None:
    """UsageError for an absolute path or URL inside a cache: it would become a part of it."""
    if place.startswith(cache.files.absolute.rstrip("/") + "/"):
        raise UsageError(f"{place} lies inside {cache.location}. Choose a path outside.")


def require_own_place(files: Files, source: Cache) -> None:
    """UsageError when a place without a cache is no place for a copy of ``source``: inside it, or
    with anything there but an unfinished copy."""
    require_outside(files.absolute, source)
    inside = files.names_in("")
    if names.COMMITTED & set(inside) and MARK not in inside:
        raise UsageError(
            f"{files.location} holds the shards of a cache whose {names.ROOT} was lost. Put it "
            "back, or choose a path that does not exist yet."
        )
    others = [name for name in inside if name not in OURS and not name.endswith(TEMPORARY_SUFFIX)]
    if isinstance(files, LocalFiles) and Path(files.root).is_file():
        raise UsageError(f"{files.location} is a file. Choose a folder that does not exist yet.")
    if others:
        raise UsageError(
            f"{files.location} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )
