"""Channels whose values the stored dtype holds too coarsely: a large mean with little around it.

float16 has 11 bits: around a mean m its values lie step(m) = 2^(floor(log2 |m|) - 10) apart. Where
that is more than a tenth of the standard deviation, what tells images apart is largely rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from phistill.cache import Cache
from phistill.cache.format.info import DTYPES

MAX_STEP = 0.1
"""Of a standard deviation."""

SAMPLE_ROWS = 64
SAMPLE_BYTES = 2**24
"""Of one array: rows that are larger are fewer."""

MIN_VECTORS = 8
"""Fewer say nothing of a standard deviation."""


class CoarseChannels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many channels of an array are coarse, and the worst: its mean, std and step."""

    num: int
    worst: int
    mean: float
    std: float
    step: float


class CoarseArray(msgspec.Struct, frozen=True):
    """A teacher's array with coarse channels."""

    teacher: str
    kind: str
    width: int
    channels: CoarseChannels

    def __str__(self) -> str:
        worst, dtype = self.channels, DTYPES[self.kind].name
        return (
            f"{self.teacher} {self.kind}: warning: {worst.num:,} of {self.width:,} channels are "
            f"held coarsely by {dtype}, whose step at their mean is more than a tenth of their "
            f"standard deviation; the worst is channel {worst.worst}: mean {worst.mean:.3g}, std "
            f"{worst.std:.3g}, step {worst.step:.3g}. Take a layer after its norm, or take the "
            "mean off first."
        )


def coarse_channels(
    mean: Float[np.ndarray, " c"], std: Float[np.ndarray, " c"], dtype: np.dtype[Any]
) -> CoarseChannels | None:
    """Channels with step(mean) > MAX_STEP * std; None when there is none. A channel that is always
    zero is not among them, one that is always the same other value is."""
    with np.errstate(over="ignore"):
        step = np.spacing(np.abs(mean).astype(dtype)).astype(np.float64)
    is_coarse = (step > MAX_STEP * std) & ((mean != 0) | (std != 0))
    if not is_coarse.any():
        return None
    with np.errstate(divide="ignore"):
        worst = int(np.argmax(np.where(is_coarse, step / std, 0.0)))
    return CoarseChannels(
        num=int(is_coarse.sum()),
        worst=worst,
        mean=float(mean[worst]),
        std=float(std[worst]),
        step=float(step[worst]),
    )


def coarse_arrays(cache: Cache, teachers: Sequence[str]) -> tuple[CoarseArray, ...]:
    """The arrays of these teachers with coarse channels, judged by SAMPLE_ROWS rows that are
    stored, spread over the cache. ``fit_stats`` says the same of all rows."""
    return tuple(found for name in teachers for found in _of_teacher(cache, name))


def _of_teacher(cache: Cache, name: str) -> Iterator[CoarseArray]:
    info = cache.teacher(name)
    rows = cache.rows([name], "all")
    num = min(len(rows), SAMPLE_ROWS, max(1, SAMPLE_BYTES // info.row_bytes))
    rows = rows[np.linspace(0, len(rows) - 1, num, dtype=np.int64)]
    for kind in info.kinds if num else ():
        vectors = cache.reader(name, kind).read(rows).astype(np.float64)
        vectors = vectors.reshape(-1, info.width(kind))
        if len(vectors) < MIN_VECTORS:
            continue
        channels = coarse_channels(vectors.mean(0), vectors.std(0), DTYPES[kind])
        if channels is not None:
            yield CoarseArray(name, kind, info.width(kind), channels)
