"""Images taken down, and teachers forgotten. No shard is rewritten; ``compact`` drops the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import UsageError

from ..format import names
from ..rows import removed_rows, spans
from ..store import Cache


def remove_images(cache: Cache, ids: Sequence[str]) -> int:
    """Take down images by id: their rows are never given out again. Returns how many rows that is,
    without those that were removed before.

    The bytes stay in their shards. Statistics that used the rows become stale.
    """
    ids_of_rows, rows = _ids_and_rows(cache)
    named = pa.array(sorted(set(ids)), pa.string())
    if unknown := sorted(
        set(ids) - set(ids_of_rows.filter(pc.is_in(ids_of_rows, named)).to_pylist())
    ):
        raise UsageError(
            f"{cache.location} has no image {unknown[0]!r} "
            f"({len(unknown)} of {len(named)} unknown)."
        )
    chosen = rows[pc.is_in(ids_of_rows, named).to_numpy()]
    hidden = removed_rows(cache.info)
    num_new = int(np.count_nonzero(~hidden[chosen]))
    hidden[chosen] = True
    if num_new:
        cache.publish_root(replace(cache.info, removed=spans(hidden)))
    return num_new


def duplicates(cache: Cache, ids: Sequence[str]) -> dict[str, str]:
    """Other images with the same bytes as one of ``ids``, each with the one it equals.

    Bytes are compared by the sha256 among the facts; images that were taken down already are left
    out.
    """
    ids_of_rows, rows = _ids_and_rows(cache)
    named = pc.is_in(ids_of_rows, pa.array(sorted(set(ids)), pa.string())).to_numpy()
    facts = cache.facts()
    images, has = facts.images[rows], facts.has_sha256[rows]
    removed = np.flatnonzero(named & has)
    same = np.flatnonzero(~named & has & ~removed_rows(cache.info)[rows])
    same = same[np.isin(images[same], images[removed])]
    name_of = dict(
        zip(images[removed].tolist(), ids_of_rows.take(removed).to_pylist(), strict=True)
    )
    twins = zip(ids_of_rows.take(same).to_pylist(), images[same].tolist(), strict=True)
    return {name: name_of[image] for name, image in twins}


def _ids_and_rows(cache: Cache) -> tuple[Any, NDArray[np.int64]]:
    """Each line's id, and its row."""
    return cache.index(["id"])["id"], np.flatnonzero(cache.info.real_rows)


def remove_teacher(cache: Cache, name: str) -> None:
    """Forget a teacher, then delete its features, commits and statistics."""
    cache.teacher(name)
    left = tuple(other for other in cache.teachers if other != name)
    cache.publish_root(replace(cache.info, teachers=left))
    for folder in names.folders_of(name):
        cache.files.delete(folder)
