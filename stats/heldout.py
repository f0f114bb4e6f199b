"""Does a normalizer hold on images it has not seen?

Channel variances of normalised held-out features scatter around 1 because the images are few, even
where training and held-out images are alike. The range to expect follows from how much the images
differ: q_ic = mean over the tokens of image i of y_c^2, so the variance of channel c has a standard
error of std_i(q_ic) / sqrt(n); tokens of one image are alike and do not count singly.

n images, T tokens of an image, c width, y normalised features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..cache import Cache
from ..cache.errors import DegenerateMoments
from .blocks import BLOCK_VECTORS
from .fit import fitted
from .normalizer import Normalizer

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
    """Lower end of the range that all channels keep to with probability CONFIDENCE, around 1."""
    expected_max: float


def heldout_variances(
    cache: Cache,
    teacher: str,
    kind: str,
    methods: Sequence[str] = ("phi-s", "standardize", "hca"),
) -> list[HeldoutRow]:
    """Channel variances of the held-out rows under normalizers fitted on the training rows.

    Reads the held-out rows once and keeps sums only. Raises DegenerateMoments when fewer than two
    rows are held out, and what stats.fitted raises.
    """
    rows = cache.rows([teacher], split="heldout")
    if len(rows) < 2:
        raise DegenerateMoments(
            f"teacher {teacher}, {kind}: {len(rows)} rows are held out; at least 2 are needed. "
            "Extract more images, or with a larger --holdout."
        )
    reader = cache.reader(teacher, kind)
    tokens = int(np.prod(reader.row_shape[:-1]))
    sums = [_Sums(fitted(cache, teacher, kind, method)) for method in methods]
    step = max(1, BLOCK_VECTORS // tokens)
    for start in range(0, len(rows), step):
        block = reader.read(rows[start : start + step])
        for one in sums:
            one.add(block.reshape(len(block), tokens, -1))
    return [one.row(teacher, kind) for one in sums]


class _Sums:
    """Over images: of the mean of y, of q = mean of y^2, and of q^2; all (c,) float64."""

    def __init__(self, normalizer: Normalizer) -> None:
        self._normalizer = normalizer
        self._n = 0
        self._y, self._q, self._q2 = (np.zeros(normalizer.width) for _ in range(3))

    def add(self, block: np.ndarray) -> None:
        """Add images (b, T, c)."""
        y = self._normalizer.transform(block).astype(np.float64)
        q = np.mean(np.square(y), axis=1)
        self._n += len(block)
        self._y += np.sum(np.mean(y, axis=1), axis=0)
        self._q += np.sum(q, axis=0)
        self._q2 += np.sum(np.square(q), axis=0)

    def row(self, teacher: str, kind: str) -> HeldoutRow:
        mean, q = self._y / self._n, self._q / self._n
        variance = q - np.square(mean)
        spread = np.maximum(self._q2 / self._n - np.square(q), 0.0)  # of q over images
        error = np.sqrt(np.mean(spread) / (self._n - 1))
        # A two-sided bound that holds for all c channels at once (Bonferroni).
        bound = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * len(variance)))
        return HeldoutRow(
            teacher=teacher,
            kind=kind,
            method=self._normalizer.method,
            num_rows=self._n,
            variance_min=float(variance.min()),
            variance_mean=float(variance.mean()),
            variance_max=float(variance.max()),
            expected_min=max(0.0, 1 - float(bound * error)),
            expected_max=1 + float(bound * error),
        )
