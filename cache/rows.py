"""Which rows of a cache may be used: committed, accepted, not taken down, of the wanted split.

Pure functions of the settings and the commit records; masks are (num_rows,) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

from .format.info import CacheInfo
from .format.record import CommitRecord
from .format.split import HELDOUT, TRAIN, Split

Mask = NDArray[np.bool_]
Records = Mapping[int, CommitRecord]
"""Commit records of one owner by shard."""


def removed_rows(info: CacheInfo) -> Mask:
    """True where a row was taken down."""
    removed = np.zeros(info.num_rows, bool)
    for start, stop in info.removed:
        removed[start:stop] = True
    return removed


def spans(mask: Mask) -> tuple[tuple[int, int], ...]:
    """Ranges [start, stop) where a mask is True: what ``CacheInfo.removed`` is made of."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(np.int8), 0])).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def readable_rows(info: CacheInfo, records: Records) -> Mask:
    """True where an owner with these records has a value that may be used."""
    readable = np.zeros(info.num_rows, bool)
    for record in records.values():
        readable[record.start : record.start + record.num_rows] = record.accepted
    return readable & ~removed_rows(info)


def eligible_rows(info: CacheInfo, owners: Sequence[Records], split: Split) -> NDArray[np.int64]:
    """Rows (n,), ascending, that every one of ``owners`` committed and accepted, of one split.

    UsageError for a split that is not known.
    """
    if split not in (TRAIN, HELDOUT, "all"):
        raise UsageError(f"split={split!r} is not known; choose train, heldout or all.")
    eligible = ~removed_rows(info)
    for records in owners:
        eligible &= readable_rows(info, records)
    if split != "all":
        eligible &= heldout_rows(info, owners) == (split == HELDOUT)
    return np.flatnonzero(eligible).astype(np.int64)


def heldout_rows(info: CacheInfo, owners: Sequence[Records]) -> Mask:
    """True where a row is held out; rows that no owner committed are False."""
    heldout = np.zeros(info.num_rows, bool)
    for records in owners[:1]:  # the images of every owner are the same
        for record in records.values():
            heldout[record.start : record.start + record.num_rows] = record.heldout
    return heldout


def row_hashes(info: CacheInfo, owners: Sequence[Records]) -> NDArray[np.object_]:
    """(num_rows,) sha256 (hex) of each row's encoded image; None where no shard says."""
    hashes = np.full(info.num_rows, None, object)
    for records in owners:
        for record in records.values():
            hashes[record.start : record.start + record.num_rows] = record.images.sha256
    return hashes
