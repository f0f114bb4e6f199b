"""Whether a learning curve was still falling where it ended.

Over the last two fifths of the steps, in two halves of means a and b with their standard errors:
    fall = (a - b) / a, and it is more than noise where a - b > 2 sqrt(error_a^2 + error_b^2)
With a learning rate that goes to zero, as here, a curve flattens in any case: one that still falls
by more than FALLING wants more steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

FALLING = 0.02
"""A fall by less is not worth as many steps again."""

MIN_VALUES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveEnd:
    """The end of one curve."""

    fall: float
    """Share by which the last fifth lies below the fifth before; negative where it rose."""

    is_falling: bool
    """Whether that is more than FALLING and more than noise."""

    def __str__(self) -> str:
        way = "fell" if self.fall > 0 else "rose"
        told = f"over the last fifth of the steps the loss {way} by {abs(self.fall):.1%}"
        return (
            f"{told}: it was still falling, more steps will help."
            if self.is_falling
            else f"{told}: more steps will hardly help."
        )


def curve_end(losses: Sequence[float]) -> CurveEnd | None:
    """Of losses that were logged at even distances; None for fewer than MIN_VALUES of them."""
    fifth = len(losses) // 5
    before, after = losses[-2 * fifth : -fifth], losses[-fifth:]
    if len(losses) < MIN_VALUES or not all(map(math.isfinite, (*before, *after))):
        return None
    a, b = fmean(before), fmean(after)
    if a <= 0:
        return None
    noise = math.hypot(*(stdev(part) / math.sqrt(fifth) for part in (before, after)))
    return CurveEnd(fall=(a - b) / a, is_falling=(a - b) / a > FALLING and a - b > 2 * noise)
