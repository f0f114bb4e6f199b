"""Whether a learning curve was still falling where it ended.

A line is fitted to the last half of the logged losses, n of them, by least squares. With r the
correlation of its residuals at distance 1, corrected for what fitting takes from it, n lines say as
much as n' independent ones, and the standard error of the slope grows by as much:
    n' = n (1 - r) / (1 + r),    error^2 = s^2 / sum (i - mean(i))^2 * n / n'
where s^2 is the residuals' mean square times n' / (n' - 2).
The fall is that of the line over this half, as a share of its height at the end of it, and its
interval is Student's t with n' - 2 degrees of freedom.

The terms of several teachers are taken together by their geometric mean: a fall of it is the mean
fall of all terms, whatever their scales and weights. Weighted sums do not tell: AdaLoss divides
each term by its own running mean, so that its sum stays the same while all terms fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from phistill.stats.intervals import LEVEL, t_quantile

FALLING = 0.05
"""A fall over the last half of the steps by less is not worth as many steps again."""

MIN_VALUES = 10
MIN_LINES_FLAT = 20
"""Of fewer logged losses in the last half, each of one batch, none is called flat."""

MAX_CORRELATION = 0.9
MIN_FREEDOM = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveEnd:
    """The end of one curve."""

    fall: float
    """Share by which the loss fell over the last half of the steps; negative where it rose."""

    low: float
    high: float
    """Where the fall lies with a probability of LEVEL, over the noise of the logged losses."""

    num_lines: int
    """Logged losses in that half."""

    @property
    def is_falling(self) -> bool:
        """Whether the fall is more than FALLING and more than noise."""
        return self.fall > FALLING and self.low > 0

    @property
    def is_flat(self) -> bool:
        """Whether a fall by FALLING is excluded, by lines enough."""
        return self.high < FALLING and self.num_lines >= MIN_LINES_FLAT

    def __str__(self) -> str:
        way = "fell" if self.fall > 0 else "rose"
        told = (
            f"over the last half of the steps the loss {way} by {abs(self.fall):.1%} "
            f"(95 % interval of the fall {self.low:.1%} to {self.high:.1%})"
        ).replace("-", "−")
        if self.is_falling:
            return f"{told}: still falling, more steps will help."
        if self.is_flat:
            return (
                f"{told}: flat within noise; more steps will hardly help, unless it was the "
                "sinking learning rate that flattened it."
            )
        return f"{told}: whether it still falls cannot be told from {self.num_lines} logged lines."


def unweighted(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The geometric mean of the terms of each logged line ("losses"), over those that every line
    has and that stay above 0; [] where there are none."""
    terms = [line.get("losses", {}) for line in lines]
    names = [
        name for name in (terms[0] if terms else ()) if all(one.get(name, 0) > 0 for one in terms)
    ]
    if not names:
        return []
    return [math.exp(fmean(math.log(one[name]) for name in names)) for one in terms]


def curve_end(losses: Sequence[float]) -> CurveEnd | None:
    """Of losses that were logged at even distances; None for fewer than MIN_VALUES of them."""
    half = np.asarray(losses[len(losses) // 2 :], np.float64)
    n = len(half)
    if len(losses) < MIN_VALUES or not np.isfinite(half).all():
        return None
    places = np.arange(n) - (n - 1) / 2
    squares = float(places @ places)
    slope, mean = float(places @ half) / squares, float(half.mean())
    height = mean + slope * (n - 1) / 2
    if height <= 0:
        return None
    residuals = half - mean - slope * places
    independent = n * (1 - (r := _correlation(residuals))) / (1 + r)
    freedom = max(MIN_FREEDOM, independent - 2)
    variance = float(residuals @ residuals) / n * (freedom + 2) / freedom
    error = math.sqrt(variance / squares * n / independent)
    reach = -t_quantile((1 - LEVEL) / 2, int(freedom)) * error
    low, fall, high = (-(slope + at) * (n - 1) / height for at in (reach, 0.0, -reach))
    return CurveEnd(fall=fall, low=low, high=high, num_lines=n)


def _correlation(residuals: np.ndarray) -> float:
    """Of neighbours; 0 where it is negative. Two fitted numbers take (2 + 4 r) / n from it."""
    total = float(residuals @ residuals)
    if total == 0:
        return 0.0
    r = float(residuals[1:] @ residuals[:-1]) / total
    return min(MAX_CORRELATION, max(0.0, r + (2 + 4 * r) / len(residuals)))
