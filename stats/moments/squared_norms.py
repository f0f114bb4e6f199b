"""How unevenly tokens share the variance: a mergeable histogram of their squared distances to the
mean, which are the squared norms of centred vectors.

A few tokens of enormous norm can own most of a covariance, and phi and the leading axes with it.
The histogram has logarithmic bins, so that two of them add exactly and any quantile is known to
the width of a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BINS_PER_OCTAVE = 8
_LOWEST, _HIGHEST = -200, 200  # powers of two; float32 squares stay within 2^-149 .. 2^128
NUM_BINS = (_HIGHEST - _LOWEST) * BINS_PER_OCTAVE

TOP_FRACTION = 1e-3
"""The tokens the warning looks at: the top 0.1 %."""

WARNING_SHARE = 0.1
"""Share of the variance in the top 0.1 % of tokens above which a warning is due: a hundred times
their number. Measured: Gaussian tokens 0.013 or less, Student-t(5) tokens 0.01 to 0.05."""

WARNING_VECTORS = 10_000
"""Fewer vectors raise no warning: of 1,000 Student-t(5) numbers the largest one alone holds a tenth
in 2 % of the draws, of 10,000 the ten largest do in less than 1 %."""


@dataclass(frozen=True, eq=False)
class SquaredNorms:
    """counts (bins,) int64 and sums (bins,) float64 of |x - mean|^2 per vector."""

    counts: Int[np.ndarray, " bins"]
    sums: Float[np.ndarray, " bins"]

    def __add__(self, other: SquaredNorms) -> SquaredNorms:
        return SquaredNorms(self.counts + other.counts, self.sums + other.sums)

    @classmethod
    def zero(cls) -> SquaredNorms:
        return cls(np.zeros(NUM_BINS, dtype=np.int64), np.zeros(NUM_BINS))

    @classmethod
    def of(cls, squared: Float[np.ndarray, " b"]) -> SquaredNorms:
        """The histogram of the squared distances of b vectors, not negative."""
        squared = squared.astype(np.float64)
        with np.errstate(divide="ignore"):
            octave = np.log2(squared) - _LOWEST
        bins = np.clip(octave * BINS_PER_OCTAVE, 0, NUM_BINS - 1).astype(np.int64)
        return cls(
            np.bincount(bins, minlength=NUM_BINS),
            np.bincount(bins, weights=squared, minlength=NUM_BINS).astype(np.float64),
        )

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def top_share(self, fraction: float = TOP_FRACTION) -> float:
        """Share of the total held by the top `fraction` of vectors, at least one of them.

        The bin in which the fraction ends counts in proportion. 0 when there is no variance.
        """
        total = float(self.sums.sum())
        if total == 0.0:
            return 0.0
        wanted = max(1.0, fraction * self.n)
        counts, sums = self.counts[::-1], self.sums[::-1]
        before = np.cumsum(counts) - counts  # vectors in higher bins
        taken = np.clip(wanted - before, 0, counts)
        return float(np.sum(sums * taken / np.maximum(counts, 1)) / total)
