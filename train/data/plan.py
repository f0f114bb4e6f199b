"""Which rows a step takes: a pure function of the caches, the config and the step.

Every cache has its own stream (stream.py). A run's epoch is as many rows as all caches have
training images; of its N positions cache k has m_k = w_k N, rounded so that they add up, spread
evenly: its j-th row stands where (j + 1/2) / m_k falls among those of the others. A batch thus
holds every cache's share to within one or two rows. Of one cache every position is its own.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phistill.cache.joined import JoinedCaches
from phistill.errors import UsageError, counted

from ..config import TrainConfig
from ..targets import chosen_teachers
from .stream import Rows, RowStream, make_stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RowPlan:
    """The streams of a run's caches and whose turn it is.

    Workers, ranks and parts take their share of the one global sequence, so their number changes
    nothing, and a resumed run goes on in the middle of an epoch.
    """

    config: TrainConfig
    teachers: tuple[str, ...]
    streams: tuple[RowStream, ...]
    starts: tuple[int, ...]
    """Number of each cache's row 0; see JoinedCaches."""

    shares: tuple[float, ...]
    """Share of the rows drawn from each cache; they add up to 1."""

    rows_per_epoch: tuple[int, ...]
    """How many rows of an epoch each cache gives."""

    @property
    def num_images(self) -> int:
        """Rows of one epoch: as many as all caches have images."""
        return sum(self.rows_per_epoch)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        derived = math.ceil(self.config.epochs * self.num_images / self.config.batch_size)
        return self.config.num_steps or max(1, derived)

    @property
    def block_rows(self) -> int:
        """Rows of an epoch in which some cache uses up one block: how far to look ahead."""
        pairs = zip(self.streams, self.shares, strict=True)
        return min(int(stream.block_rows / share) for stream, share in pairs)

    @property
    def num_rows(self) -> int:
        """Eligible rows, those of every view."""
        return sum(len(stream.rows) for stream in self.streams)

    @property
    def rows(self) -> Rows:
        """All eligible rows (n,), ascending, made anew."""
        pairs = zip(self.starts, self.streams, strict=True)
        return np.concatenate([start + stream.rows.to_array() for start, stream in pairs])

    @property
    def digest(self) -> str:
        """sha256 (hex) that names the sequence of rows; a resumed run must have the same."""
        content = hashlib.sha256(" ".join(stream.digest for stream in self.streams).encode())
        content.update(repr(self.rows_per_epoch).encode())
        return content.hexdigest()

    @property
    def images(self) -> str:
        """sha256 (hex) of the ids that are learnt from: the order only knows their numbers."""
        return hashlib.sha256(" ".join(part.images for part in self.streams).encode()).hexdigest()

    def epoch(self, epoch: int) -> Rows:
        """The rows (num_images,) of one epoch in the order they are visited."""
        return self._between(epoch, 0, self.num_images)

    def step(self, step: int) -> Rows:
        """The rows (batch_size,) of one optimizer step; a batch may span two epochs."""
        position = step * self.config.batch_size
        stop = position + self.config.batch_size
        parts = []
        while position < stop:
            epoch, first = divmod(position, self.num_images)
            parts.append(self._between(epoch, first, min(first + stop - position, self.num_images)))
            position += len(parts[-1])
        return np.concatenate(parts)

    def _between(self, epoch: int, first: int, last: int) -> Rows:
        """The rows (last - first,) at these positions of one epoch."""
        turns, places = turns_between(self.rows_per_epoch, first, last)
        rows = np.empty(len(turns), np.int64)
        for number, (stream, start) in enumerate(zip(self.streams, self.starts, strict=True)):
            mine = turns == number
            if own := places[mine].tolist():  # consecutive numbers
                begin = epoch * self.rows_per_epoch[number] + own[0]
                rows[mine] = start + stream.between(begin, begin + len(own))
        return rows

    def teachers_of(self, rows: Rows) -> NDArray[np.int64] | None:
        """The number of the one teacher of each row, or None when every teacher takes all."""
        if self.config.partition == "all":
            return None
        cache_of = np.searchsorted(self.starts, rows, side="right") - 1
        slots = np.empty(len(rows), np.int64)
        for number, (stream, start) in enumerate(zip(self.streams, self.starts, strict=True)):
            mine = cache_of == number
            slots[mine] = stream.teachers_of(rows[mine] - start)
        return slots


def make_plan(caches: JoinedCaches, config: TrainConfig) -> RowPlan:
    """The plan of a run on the caches' training rows.

    An image that one cache holds out is not learnt from another (a warning says how many). Filters
    and ``max_rows`` act on each cache by itself. Raises UsageError when they leave no row or the
    weights do not fit the caches, IncompleteCache when there is no row to begin with. Fewer rows
    than a batch are no error: a batch may span several epochs.
    """
    teachers = chosen_teachers(caches, config.teachers)
    leaked = caches.leaked_rows(teachers)
    if number := sum(len(rows) for rows in leaked):
        warnings.warn(
            f"Left out: {counted(number, 'training row')} of images that another of the caches "
            "holds out. Caches with an equal --seed and --holdout agree on what is held out.",
            stacklevel=2,
        )
    streams = tuple(
        make_stream(cache, config, teachers, without=rows, number=number)
        for number, (cache, rows) in enumerate(zip(caches.caches, leaked, strict=True))
    )
    counts = [stream.num_images for stream in streams]
    shares = _shares(config.cache_weights, counts, caches)
    drawn = _apportion(shares, sum(counts))
    for cache, share, rows in zip(caches.caches, shares, drawn, strict=True):
        if rows == 0:
            raise UsageError(
                f"the share {share:.2g} of {cache.location} gives it no row in an epoch of "
                f"{sum(counts)}. Raise its weight, or leave the cache out."
            )
        log.debug(
            "order=%s, order_seed=%d: %s of %s in an epoch, of teachers %s",
            *(config.order, config.order_seed, counted(rows, "row"), cache.location),
            ", ".join(teachers),
        )
    return RowPlan(config, teachers, streams, caches.starts, shares, tuple(drawn))


def _shares(
    weights: Sequence[float], counts: Sequence[int], caches: JoinedCaches
) -> tuple[float, ...]:
    """Weights divided by their sum; without weights every training image counts the same."""
    if weights and len(weights) != len(counts):
        raise UsageError(
            f"cache_weights={list(weights)} has {counted(len(weights), 'weight')} for "
            f"{counted(len(counts), 'cache')}, {caches.location}. Give one for each."
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


def turns_between(
    counts: Sequence[int], first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose turn it is at the positions ``first`` to ``last`` of an epoch in which cache k gives
    ``counts[k]`` rows, and how many positions before each were that cache's: (last - first,) both.

    Row j of cache k comes at time (j + 1/2) / counts[k]; of equal times the first cache's comes
    first. Between times 0 and t a cache has had counts[k] t rows, to one half, so that the rows at
    these positions are found among as many and a margin for each cache.
    """
    total, margin = sum(counts), len(counts) + 2
    starts = [max(0, count * first // total - margin) for count in counts]
    stops = [min(count, count * last // total + margin + 1) for count in counts]
    spans = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
    places = np.concatenate(spans)
    sizes = [len(span) for span in spans]
    caches = np.repeat(np.arange(len(counts)), sizes)
    times = (places + 0.5) / np.repeat(np.asarray(counts, np.float64), sizes)
    order = np.argsort(times, kind="stable")[first - sum(starts) : last - sum(starts)]
    return caches[order], places[order]
