"""Statistics of several caches drawn from with weights: those of what a student then sees.

A row comes from cache k with probability w_k, so the features are distributed as the mixture
p = sum_k w_k p_k, whose mean and covariance follow from those of the parts:

    mean = sum_k w_k m_k        S = sum_k w_k (S_k + (m_k - mean)(m_k - mean)^T)

Merging the scatters instead would give the same only where the weights are the caches' shares of
the rows; a cache that is drawn more often than its size would then be normalised by the other's
variance. With w_k = n_k / sum_j n_j both are equal (tested). A mixture of one cache is that cache:
its stored statistics, to the last bit.

c width, k number of a cache, w_k its share, n_k vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phistill.cache import Cache
from phistill.errors import UsageError

from ..description import dispersion
from ..moments.moments import Moments
from ..moments.pass_result import moments_digest
from ..normalizer.normalizer import Normalizer
from .loading import load_description, load_moments, load_options, normalizer_of
from .pieces import sampled_rows


def mixed(parts: Sequence[Moments], shares: Sequence[float]) -> Moments:
    """Moments of the mixture of ``parts`` with weights ``shares``, which add up to 1.

    A single part is itself. n is the number of vectors that were looked at, scatter is n S: the
    covariance is that of the mixture. eps is the largest of the parts.
    """
    if len(parts) != len(shares) or not np.isclose(sum(shares), 1.0) or min(shares) <= 0:
        raise UsageError(
            f"shares={list(shares)} must be {len(parts)} positive numbers that add up to 1."
        )
    if len({part.width for part in parts}) != 1 or min(part.n for part in parts) < 1:
        raise UsageError(
            f"Moments of widths {[part.width for part in parts]} and n {[p.n for p in parts]} do "
            "not mix: widths must be equal and every n at least 1."
        )
    if len(parts) == 1:
        return parts[0]
    # Distances from the first mean, not the means themselves: nothing is lost where they are large.
    offset = sum(w * (p.mean - parts[0].mean) for w, p in zip(shares, parts, strict=True))
    mean = parts[0].mean + offset  # (c,)
    covariance = np.zeros_like(parts[0].scatter)  # (c, c)
    for w, part in zip(shares, parts, strict=True):
        delta = part.mean - mean
        covariance += w * (part.covariance + np.outer(delta, delta))
    n = sum(part.n for part in parts)
    return Moments(n, mean, covariance * n, max(part.eps for part in parts))


def mixed_moments(
    caches: Sequence[Cache], shares: Sequence[float], teacher: str, kind: str
) -> Moments:
    """The moments of one array over several caches; errors as ``load_moments``."""
    return mixed([load_moments(cache, teacher, kind) for cache in caches], shares)


def fitted_to_mixture(
    caches: Sequence[Cache],
    shares: Sequence[float],
    teacher: str,
    kind: str,
    method: str = "phi-s",
    *,
    moments: Moments | None = None,
    **options: float,
) -> Normalizer:
    """A normalizer of one array, fitted to the mixture of several caches; ``moments`` are those of
    ``mixed_moments``, where the caller has them."""
    moments = moments or mixed_moments(caches, shares, teacher, kind)
    if len(caches) == 1:
        return normalizer_of(moments, caches[0], teacher, kind, method, **options)
    return Normalizer.fit(moments, method, moments_digest=moments_digest(moments), **options)


def mixed_dispersion(
    caches: Sequence[Cache], shares: Sequence[float], teacher: str, kind: str
) -> float:
    """The mean squared angle (rad^2) of the mixture's summaries to their mean direction.

    Of several caches the direction is known only here, so the training summaries of each are read
    once more.
    """
    if len(caches) == 1:
        value = load_description(caches[0], teacher, kind).dispersion
        assert value is not None, "fit_stats measures it for every summary"
        return value
    mean = mixed_moments(caches, shares, teacher, kind).mean
    total = 0.0
    for cache, share in zip(caches, shares, strict=True):
        options = load_options(cache, teacher, kind)
        rows = sampled_rows(cache, teacher, options)
        total += share * dispersion(cache.reader(teacher, kind), rows, mean)
    return total
