"""Which rows of a cache may be used: committed, accepted, not taken down, of the wanted split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

from .format import names
from .format.info import CacheInfo
from .format.split import HELDOUT, TRAIN, Split, is_heldout

if TYPE_CHECKING:
    from .store import Cache


def removed_rows(info: CacheInfo) -> NDArray[np.bool_]:
    """(num_rows,) True where a row was taken down."""
    removed = np.zeros(info.num_rows, bool)
    for start, stop in info.removed:
        removed[start:stop] = True
    return removed


def usable_rows(cache: Cache, teachers: Sequence[str], split: Split) -> NDArray[np.int64]:
    """Rows (n,), ascending, that the pixels and every one of ``teachers`` committed and accepted.

    UsageError for a split or a teacher that is not known.
    """
    if split not in (TRAIN, HELDOUT, "all"):
        raise UsageError(f"split={split!r} is not known; choose train, heldout or all.")
    owners = (*((names.PIXELS,) if cache.info.pixel_size else ()), *teachers)
    usable = ~removed_rows(cache.info)
    for owner in owners:
        cache.shapes(owner)
        accepted = np.zeros(cache.num_rows, bool)
        for record in cache.commits(owner).values():
            accepted[record.start : record.start + record.num_rows] = record.accepted
        usable &= accepted
    if split != "all":
        usable &= _heldout(cache, owners) == (split == HELDOUT)
    return np.flatnonzero(usable).astype(np.int64)


def _heldout(cache: Cache, owners: Sequence[str]) -> NDArray[np.bool_]:
    """(num_rows,) True where a row is held out; rows that no owner committed are False."""
    heldout = np.zeros(cache.num_rows, bool)
    index = cache.index()
    if "split" in index.column_names:
        given = np.array(index["split"].to_pylist(), dtype=object)
        heldout[index["row"].to_numpy()] = given == HELDOUT
        return heldout
    for owner in owners[:1]:  # the images of every owner are the same
        for record in cache.commits(owner).values():
            for slot, sha256 in enumerate(record.images.sha256):
                if sha256 is not None:
                    heldout[record.start + slot] = is_heldout(
                        sha256, seed=cache.info.seed, fraction=cache.info.holdout
                    )
    return heldout
