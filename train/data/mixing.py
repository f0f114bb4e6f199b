"""Which rows a step takes when several caches are drawn from with weights.

Every cache has its own stream: one permutation of its images after the other, so that none comes
again before all have come. A run's epoch is as many rows as all caches have training images; of
its N positions cache k has m_k = w_k N, rounded so that they add up, spread evenly: its j-th row
stands where (j + 1/2) / m_k falls among those of the others. A batch thus holds every cache's share
to within one or two rows, and the rows of a step stay a function of (seed, step) alone.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.errors import UsageError, counted

from ..config import TrainConfig
from ..targets import chosen_teachers
from .sequence import RowPlan, Rows, make_plan, num_steps


@dataclass(frozen=True, eq=False)
class MixedPlan:
    """The plans of several caches and whose turn it is; see RowPlan for what they share."""

    parts: tuple[RowPlan, ...]
    starts: tuple[int, ...]
    """Number of each cache's row 0; see JoinedCaches."""

    shares: tuple[float, ...]
    """Share of the rows drawn from each cache; they add up to 1."""

    turns: NDArray[np.uint16]
    """(num_images,) which cache each position of an epoch takes its row from."""

    indexes: tuple[str, ...]
    """sha256 of every segment's index, cache after cache: which images the rows are."""

    @property
    def config(self) -> TrainConfig:
        return self.parts[0].config

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.parts[0].teachers

    @property
    def shard_rows(self) -> int:
        """Rows of an epoch in which some cache uses up one shard: how far to look ahead."""
        pairs = zip(self.parts, self.shares, strict=True)
        return min(int(part.shard_rows / share) for part, share in pairs)

    @cached_property
    def rows(self) -> Rows:
        """All eligible rows (n,), ascending."""
        return np.concatenate([s + p.rows for s, p in zip(self.starts, self.parts, strict=True)])

    @property
    def num_images(self) -> int:
        """Rows of one epoch: as many as all caches have images."""
        return len(self.turns)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return num_steps(self.config, self.num_images)

    @property
    def digest(self) -> str:
        """Names the sequence of rows; a resumed run must have the same."""
        names = (*(part.digest for part in self.parts), *self.indexes)
        content = hashlib.sha256(" ".join(names).encode())
        content.update(self.turns.tobytes())
        return content.hexdigest()

    @property
    def images(self) -> str:
        """sha256 (hex) over the parts': which images are learnt from."""
        return hashlib.sha256(" ".join(part.images for part in self.parts).encode()).hexdigest()

    def epoch(self, epoch: int) -> Rows:
        """The rows (num_images,) of one epoch in the order they are visited."""
        found = np.empty(self.num_images, np.int64)
        for number, (part, start) in enumerate(zip(self.parts, self.starts, strict=True)):
            places = np.flatnonzero(self.turns == number)
            first = epoch * places.size
            found[places] = start + part.between(first, first + places.size)
        return found

    def step(self, step: int) -> Rows:
        """The rows (batch_size,) of one optimizer step; a batch may span two epochs."""
        position = step * self.config.batch_size
        stop = position + self.config.batch_size
        taken = []
        while position < stop:
            epoch, offset = divmod(position, self.num_images)
            taken.append(_epoch(self, epoch)[offset : offset + stop - position])
            position += len(taken[-1])
        return np.concatenate(taken)

    def teachers_of(self, rows: Rows) -> NDArray[np.int64] | None:
        """The number of the one teacher of each row, or None when every teacher takes all."""
        if self._slots is None:
            return None
        return self._slots[np.searchsorted(self.rows, rows)]

    @cached_property
    def _slots(self) -> NDArray[np.int64] | None:
        slots = [part.teacher_slot for part in self.parts if part.teacher_slot is not None]
        return np.concatenate(slots) if slots else None


@lru_cache(maxsize=4)
def _epoch(plan: MixedPlan, epoch: int) -> Rows:
    return plan.epoch(epoch)


def plan_of(cache: Cache | JoinedCaches, config: TrainConfig) -> RowPlan | MixedPlan:
    """The plan of a run on one cache or several; errors as ``make_plan``."""
    if isinstance(cache, JoinedCaches):
        return make_mixed_plan(cache, config)
    if len(config.cache_weights) > 1:
        raise UsageError(
            f"cache_weights={list(config.cache_weights)} has {len(config.cache_weights)} weights "
            "for one cache. Give as many caches, or leave the weights out."
        )
    return make_plan(cache, config)


def make_mixed_plan(joined: JoinedCaches, config: TrainConfig) -> MixedPlan:
    """The plan of a run on the training rows of several caches.

    An image that one cache holds out is not learnt from another (a warning says how many). Filters
    and ``max_rows`` act on each cache by itself. Errors as ``make_plan``, and UsageError for
    weights that do not fit the caches.
    """
    teachers = chosen_teachers(joined, config.teachers)
    leaked = joined.leaked_rows(teachers)
    if number := sum(len(rows) for rows in leaked):
        warnings.warn(
            f"Left out: {counted(number, 'training row')} of images that another of the caches "
            "holds out. Caches with an equal --seed and --holdout agree on what is held out.",
            stacklevel=2,
        )
    parts = tuple(
        make_plan(cache, config, without=rows, stream=stream)
        for stream, (cache, rows) in enumerate(zip(joined.caches, leaked, strict=True))
    )
    counts = [part.num_images for part in parts]
    shares = shares_of(config.cache_weights, counts, joined)
    drawn = _apportion(shares, sum(counts))
    for cache, share, rows in zip(joined.caches, shares, drawn, strict=True):
        if rows == 0:
            raise UsageError(
                f"the share {share:.2g} of {cache.location} gives it no row in an epoch of "
                f"{sum(counts)}. Raise its weight, or leave the cache out."
            )
    indexes = tuple(
        segment.index_sha256 for cache in joined.caches for segment in cache.info.segments
    )
    return MixedPlan(parts, joined.starts, shares, _turns(drawn), indexes)


def shares_of(
    weights: Sequence[float], counts: Sequence[int], joined: JoinedCaches
) -> tuple[float, ...]:
    """Weights divided by their sum; without weights every training image counts the same."""
    if weights and len(weights) != len(counts):
        raise UsageError(
            f"cache_weights={list(weights)} has {counted(len(weights), 'weight')} for "
            f"{len(counts)} caches, "
            f"{joined.location}. Give one for each."
        )
    chosen = [float(weight) for weight in weights] or [float(count) for count in counts]
    return tuple(weight / sum(chosen) for weight in chosen)


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers near share * total that add up to total (largest remainders)."""
    exact = [share * total for share in shares]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


def _turns(counts: Sequence[int]) -> NDArray[np.uint16]:
    """Whose turn it is (sum of counts,): each cache's turns are spread evenly."""
    times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    caches = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    return caches[np.argsort(times, kind="stable")]
