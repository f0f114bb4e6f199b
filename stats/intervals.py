"""Bootstrap intervals over images, of one figure and of the difference between two.

A figure is a function of sums over images: an accuracy is sum of hits / number, an unexplained
variance is sum of squared errors / sum of squared deviations. Images are drawn with replacement,
the sums of every draw give the figure of that draw, and the interval lies between two quantiles of
these. Two students that were measured on the same images are compared on the same draws, so that
what makes an image hard for both cancels.

The percentile interval is too short by sqrt(n / (n - 1)) and by the normal in the place of
Student's t; its quantiles are moved outwards for both (Hesterberg, arXiv:1411.5279, section 3.2):
    share = Phi(sqrt(n / (n - 1)) t_{n-1}(alpha / 2))

n images, k sums, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from phistill.errors import UsageError

LEVEL = 0.95
NUM_DRAWS = 2000
"""Between two seeds the ends of an interval move by about 3 % of its width."""

MIN_IMAGES = 30
"""Of fewer no interval is given: with long tails it would hold the truth in well below 93 %."""

BLOCK_BYTES = 2**26

Statistic = Callable[[Float[np.ndarray, "b k"]], Float[np.ndarray, " b"]]
"""A figure of each line of sums."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure and where it lies with a probability of LEVEL, over images."""

    value: float
    low: float | None
    """None, as ``high``, for fewer than MIN_IMAGES."""

    high: float | None
    num_images: int

    def between(self, digits: int = 3) -> str:
        """``[0.123, 0.456]``, or a hyphen where there are too few images."""
        if self.low is None or self.high is None:
            return "-"
        return f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def is_positive(self) -> bool:
        """Whether all of it lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether all of it lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def largest(self) -> float | None:
        """The largest size that it does not exclude: what "no difference" still allows."""
        if self.low is None or self.high is None:
            return None
        return max(abs(self.low), abs(self.high))

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields by name."""
        return {name: getattr(self, name) for name in ("value", "low", "high", "num_images")}


def ratio(sums: Float[np.ndarray, "b 2"]) -> Float[np.ndarray, " b"]:
    """First sum over second; NaN where the second is 0."""
    above, below = np.asarray(sums, np.float64).T
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


def values_and_ones(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Columns whose ``ratio`` is the mean of one value per image."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], 1)


def by_image(
    columns: Float[np.ndarray, "m k"], image: Shaped[np.ndarray, " m"]
) -> Float[np.ndarray, "n k"]:
    """Columns of rows summed over the views of one image, which are no independent draws.

    ``image`` names the image of each row; images come in ascending order.
    """
    names, number = np.unique(image, return_inverse=True)
    summed = np.zeros((len(names), columns.shape[1]))
    np.add.at(summed, number, columns)
    return summed


def interval(
    columns: Float[np.ndarray, "n k"], statistic: Statistic = ratio, *, seed: int = 0
) -> Interval:
    """The statistic of the columns' sums, and its bootstrap interval."""
    columns = np.asarray(columns, np.float64)
    n = len(columns)
    value = float(statistic(columns.sum(0, keepdims=True))[0]) if n else math.nan
    low = high = None
    if n >= MIN_IMAGES and math.isfinite(value):
        drawn = [statistic(counts @ columns) for counts in _draws(n, seed)]
        figures = np.concatenate(drawn)
        figures = figures[np.isfinite(figures)]
        share = _outer_share(n)
        low, high = (float(q) for q in np.quantile(figures, (share, 1 - share)))
    return Interval(value=value, low=low, high=high, num_images=n)


def difference(
    one: Float[np.ndarray, "n k"],
    other: Float[np.ndarray, "n k"],
    statistic: Statistic = ratio,
    *,
    seed: int = 0,
) -> Interval:
    """Statistic of ``one`` minus that of ``other``, paired: line i of both is the same image."""
    if np.shape(one) != np.shape(other):
        raise UsageError(
            f"columns of {np.shape(one)} and {np.shape(other)} cannot be paired: they must be of "
            "the same images."
        )
    k = np.shape(one)[1]

    def both(sums: Float[np.ndarray, "b k2"]) -> Float[np.ndarray, " b"]:
        return statistic(sums[:, :k]) - statistic(sums[:, k:])

    return interval(np.concatenate([one, other], 1), both, seed=seed)


def student_interval(
    value: float, standard_error: float, num_images: int, *, freedom: int | None = None
) -> Interval:
    """Of a figure whose standard error over images is known: Student's t with ``freedom``, by
    default that of the images."""
    if num_images < MIN_IMAGES or not math.isfinite(standard_error):
        return without_interval(value, num_images)
    quantile = t_quantile((1 - LEVEL) / 2, freedom or num_images - 1)
    half = -quantile * standard_error
    return Interval(value=value, low=value - half, high=value + half, num_images=num_images)


def without_interval(value: float, num_images: int) -> Interval:
    """Of too few images."""
    return Interval(value=value, low=None, high=None, num_images=num_images)


def _draws(n: int, seed: int) -> Iterator[Float[np.ndarray, "b n"]]:
    """How often each image is in each draw; the same for the same n and seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    block = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, NUM_DRAWS, block):
        num = min(block, NUM_DRAWS - start)
        drawn = generator.integers(n, size=(num, n))
        drawn += np.arange(num)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=num * n).reshape(num, n).astype(np.float64)


def _outer_share(n: int) -> float:
    """Share of the draws on each side of the interval."""
    normal: Any = NormalDist()
    quantile = t_quantile((1 - LEVEL) / 2, n - 1)
    return float(normal.cdf(math.sqrt(n / (n - 1)) * quantile))


def t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t: in closed form for 1 and 2 degrees of freedom, beyond by Abramowitz
    and Stegun 26.7.5.

    For shares of 0.001 to 0.999: within 0.2 % from 6 degrees of freedom on, 1e-5 from 20 on; for
    0.025 and 0.975 within 0.2 % everywhere.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z, v = NormalDist().inv_cdf(share), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
