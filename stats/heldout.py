"""Does a normalizer hold on images it has not seen?

Channel variances of normalised held-out features scatter around 1 because the images are few, even
where training and held-out images are alike. The range to expect follows from how much the images
differ. With q_ic the mean over the tokens of image i of y_c^2 (tokens of one image are alike and do
not count singly), the variance of channel c is a mean of n such q; the 1 it is compared with is a
mean of the N training images, which is as much a draw. So under chance alone

    variance_c - 1 has variance s^2 (1/n + 1/N) and skewness g (1/n^2 - 1/N^2) / (1/n + 1/N)^1.5

with s and g the standard deviation and skewness of q over images, pooled over channels. All C
channels at once keep to the quantiles at (1 - CONFIDENCE) / 2C (Bonferroni, which holds for
correlated channels too); a quantile z of the normal becomes z + g' (z^2 - 1) / 6 for a sum of
skewness g' (Cornish and Fisher 1938), because squares have a longer upper tail. Whitening adds a
rise of the mean that no range about 1 accounts for; see docs/statistics.md.

n held-out images, N training images, T tokens of an image, c width, y normalised features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from phistill.cache import Cache
from phistill.errors import DegenerateMoments

from .fit.loading import load_description, load_normalizer
from .moments.blocks import BLOCK_VECTORS
from .normalizer.normalizer import Normalizer

CONFIDENCE = 0.95
"""Probability that all channels lie in the expected range if nothing but chance is at work."""


@dataclass(frozen=True, slots=True)
class HeldoutRow:
    """Channel variances of one array's held-out features under one normalizer."""

    teacher: str
    kind: str
    method: str
    num_rows: int
    variance_min: float
    variance_mean: float
    variance_max: float
    expected_min: float
    """Lower end of the range that all channels keep to with probability CONFIDENCE."""
    expected_max: float


def heldout_variances(
    cache: Cache,
    teacher: str,
    kind: str,
    methods: Sequence[str] = ("phi-s", "standardize", "hca"),
) -> list[HeldoutRow]:
    """Channel variances of the held-out rows under normalizers fitted on the training rows.

    Reads the held-out rows once and keeps sums only. Raises DegenerateMoments when fewer than two
    rows are held out, and what load_normalizer raises.
    """
    rows = cache.rows([teacher], split="heldout")
    if len(rows) < 2:
        raise DegenerateMoments(
            f"teacher {teacher}, {kind}: {len(rows)} rows are held out; at least 2 are needed. "
            "Extract more images, or with a larger --holdout."
        )
    reader = cache.reader(teacher, kind)
    tokens = int(np.prod(reader.row_shape[:-1]))
    sums = [_Sums(load_normalizer(cache, teacher, kind, method)) for method in methods]
    step = max(1, BLOCK_VECTORS // tokens)
    for start in range(0, len(rows), step):
        block = reader.read(rows[start : start + step])
        for one in sums:
            one.add(block.reshape(len(block), tokens, -1))
    num_training = load_description(cache, teacher, kind).num_rows
    return [one.row(teacher, kind, num_training) for one in sums]


class _Sums:
    """Over images: of the mean of y, and of the powers of q = mean of y^2; all (c,) float64."""

    def __init__(self, normalizer: Normalizer) -> None:
        self._normalizer = normalizer
        self._n = 0
        self._y, self._q, self._q2, self._q3 = (np.zeros(normalizer.width) for _ in range(4))

    def add(self, block: np.ndarray) -> None:
        """Add images (b, T, c)."""
        y = self._normalizer.transform(block).astype(np.float64)
        q = np.mean(np.square(y), axis=1)
        self._n += len(block)
        self._y += np.sum(np.mean(y, axis=1), axis=0)
        self._q += np.sum(q, axis=0)
        self._q2 += np.sum(np.square(q), axis=0)
        self._q3 += np.sum(q**3, axis=0)

    def row(self, teacher: str, kind: str, num_training: int) -> HeldoutRow:
        mean, q, q2 = self._y / self._n, self._q / self._n, self._q2 / self._n
        variance = q - np.square(mean)
        spread = max(0.0, float(np.mean(q2 - np.square(q))))  # of q over images, all channels
        third = float(np.mean(self._q3 / self._n - 3 * q * q2 + 2 * q**3))
        skewness = third / spread**1.5 if spread > 0 else 0.0
        low, high = expected_range(spread, skewness, len(q), self._n, num_training)
        return HeldoutRow(
            teacher=teacher,
            kind=kind,
            method=self._normalizer.method,
            num_rows=self._n,
            variance_min=float(variance.min()),
            variance_mean=float(variance.mean()),
            variance_max=float(variance.max()),
            expected_min=low,
            expected_max=high,
        )


def expected_range(
    spread: float, skewness: float, width: int, num_heldout: int, num_training: int
) -> tuple[float, float]:
    """The range that `width` channels keep to with probability CONFIDENCE under chance alone.

    spread and skewness are variance and skewness over images of q.
    """
    n, total = num_heldout, num_training
    share = 1 / n + 1 / total
    error = math.sqrt(spread * n / max(1, n - 1) * share)
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * width))
    # Beyond 3 / z the correction would turn the order of quantiles round.
    skew = min(max(skewness * (1 / n**2 - 1 / total**2) / share**1.5, -3 / z), 3 / z)
    shift = skew * (z * z - 1) / 6
    return max(0.0, 1 + error * (shift - z)), 1 + error * (shift + z)
