"""Images taken down, and teachers forgotten. No shard is rewritten; ``compact`` drops the bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from phistill.errors import UsageError

from ..format import names
from ..rows import removed_rows, spans
from ..store import Cache


def remove_images(cache: Cache, ids: Sequence[str]) -> int:
    """Take down images by id: their rows are never given out again. Returns how many rows that is,
    without those that were removed before.

    The bytes stay in their shards. Statistics that used the rows become stale.
    """
    index = cache.index()
    known = index["id"].to_pylist()
    named = set(ids)
    if unknown := sorted(named - set(known)):
        raise UsageError(
            f"{cache.location} has no image {unknown[0]!r} "
            f"({len(unknown)} of {len(named)} unknown)."
        )
    chosen = index["row"].to_numpy()[[name in named for name in known]]
    hidden = removed_rows(cache.info)
    num_new = int(np.count_nonzero(~hidden[chosen]))
    hidden[chosen] = True
    if num_new:
        cache.publish_root(replace(cache.info, removed=spans(hidden)))
    return num_new


def duplicates(cache: Cache, ids: Sequence[str]) -> dict[str, str]:
    """Other images with the same bytes as one of ``ids``, each with the one it equals.

    Bytes are compared by the sha256 in the commit records; images that were taken down already are
    left out.
    """
    index = cache.index()
    named = set(ids)
    known = index["id"].to_pylist()
    rows = index["row"].to_numpy()
    facts = cache.facts()
    hashes = facts.sha256[rows]
    chosen = np.array([name in named for name in known], bool)
    open_rows = facts.has_sha256[rows] & ~removed_rows(cache.info)[rows]
    removed_as = {
        hashes[line].tobytes(): known[line]
        for line in np.flatnonzero(chosen & facts.has_sha256[rows]).tolist()
    }
    return {
        known[line]: removed_as[hashes[line].tobytes()]
        for line in np.flatnonzero(open_rows & ~chosen).tolist()
        if hashes[line].tobytes() in removed_as
    }


def remove_teacher(cache: Cache, name: str) -> None:
    """Forget a teacher, then delete its features, commits and statistics."""
    cache.teacher(name)
    left = tuple(other for other in cache.teachers if other != name)
    cache.publish_root(replace(cache.info, teachers=left))
    for folder in names.folders_of(name):
        cache.files.delete(folder)
