"""Which rows of a cache may be used: committed, accepted, not taken down, of the wanted split.

Pure functions of the settings, the commit records and the facts; masks are (num_rows,) bool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

from .committed.commits import Commits
from .format.info import CacheInfo
from .format.split import HELDOUT, TRAIN, Split

Mask = NDArray[np.bool_]


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


def readable_rows(info: CacheInfo, commits: Commits) -> Mask:
    """True where an owner with these records has a value that may be used."""
    committed = np.zeros(info.num_shards, bool)
    committed[commits.shards] = True
    readable = np.repeat(committed, info.shard_rows)[: info.num_rows] & info.real_rows
    readable[commits.rejected] = False
    return readable & ~removed_rows(info)


def eligible_rows(info: CacheInfo, owners: Sequence[Commits]) -> Mask:
    """True where every one of ``owners`` committed and accepted a row."""
    eligible = info.real_rows & ~removed_rows(info)
    for commits in owners:
        eligible &= readable_rows(info, commits)
    return eligible


def check_split(split: Split) -> None:
    """UsageError for a split that is not known."""
    if split not in (TRAIN, HELDOUT, "all"):
        raise UsageError(f"split={split!r} is not known; choose train, heldout or all.")
