"""The statistics of several caches are those of the rows a run draws from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.errors import UsageError
from phistill.stats import Moments, Normalizer, fit_stats
from phistill.stats.description import squared_angles
from phistill.stats.fit.mixture import fitted_to_mixture, mixed, mixed_dispersion, mixed_moments


def samples(
    seed: int, n: int, scale: float, shift: float
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 6)) @ generator.standard_normal((6, 6)) * scale + shift


ONE, TWO = samples(1, 900, 1.0, 2.0), samples(2, 300, 5.0, -40.0)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.75])
def test_mean_and_covariance_are_those_of_weighted_rows(share: float) -> None:
    weights = np.r_[np.full(900, share / 900), np.full(300, (1 - share) / 300)]
    rows = np.r_[ONE, TWO]
    mean = weights @ rows
    covariance = (rows - mean).T @ ((rows - mean) * weights[:, None])
    found = mixed([Moments.of(ONE), Moments.of(TWO)], [share, 1 - share])
    # Float64 sums of a thousand terms.
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-11)
    assert np.array_equal(found.scatter, found.scatter.T)


def test_shares_that_follow_the_rows_give_the_merged_moments() -> None:
    parts = [Moments.of(ONE), Moments.of(TWO)]
    merged, found = parts[0] + parts[1], mixed(parts, [0.75, 0.25])
    assert found.n == merged.n
    np.testing.assert_allclose(found.mean, merged.mean, rtol=1e-13)
    np.testing.assert_allclose(found.scatter, merged.scatter, rtol=1e-12)


def test_phi_s_of_the_mixture_whitens_what_is_drawn_and_that_of_the_merge_does_not() -> None:
    parts = [Moments.of(ONE), Moments.of(TWO)]
    share = 0.9
    drawn = np.r_[np.repeat(ONE, 3, axis=0), TWO]  # 2700 to 300 rows: shares 0.9 and 0.1
    right = Normalizer.fit(mixed(parts, [share, 1 - share]))
    wrong = Normalizer.fit(parts[0] + parts[1])
    np.testing.assert_allclose(right.transform(drawn).var(axis=0), 1.0, rtol=1e-9)
    assert np.abs(wrong.transform(drawn).var(axis=0) - 1.0).max() > 0.3


def test_nothing_is_lost_where_the_mean_is_large() -> None:
    far = [Moments.of(ONE + 1e8), Moments.of(ONE * 2 + 1e8)]
    near = [Moments.of(ONE), Moments.of(ONE * 2)]
    found, wanted = mixed(far, [0.5, 0.5]), mixed(near, [0.5, 0.5])
    # 1e8 leaves 1e-8 of a unit to each feature itself.
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-6, atol=1e-6)


def test_shares_and_widths_that_do_not_fit_are_refused() -> None:
    one = Moments.of(ONE)
    for shares in ([0.5], [0.5, 0.6], [1.0, 0.0]):
        with pytest.raises(UsageError, match="add up to 1"):
            mixed([one, one], shares)
    with pytest.raises(UsageError, match="widths"):
        mixed([one, Moments.of(ONE[:, :3])], [0.5, 0.5])


def test_a_cache_is_read_for_its_moments_and_its_dispersion(
    make_cache: Callable[..., Cache],
) -> None:
    caches = [make_cache(name=str(seed), num_rows=40 + seed, seed=seed) for seed in (1, 2)]
    for cache in caches:
        fit_stats(cache)
    summaries = [cache.reader("a", "summary").read(cache.rows(["a"])) for cache in caches]
    mean = 0.8 * summaries[0].mean(0, np.float64) + 0.2 * summaries[1].mean(0, np.float64)
    found = mixed_moments(caches, [0.8, 0.2], "a", "summary").mean
    np.testing.assert_allclose(found, mean, rtol=1e-6)  # block products are float32
    angles = [squared_angles(block, found).mean() for block in summaries]
    wanted = 0.8 * angles[0] + 0.2 * angles[1]
    assert mixed_dispersion(caches, [0.8, 0.2], "a", "summary") == pytest.approx(wanted, rel=1e-12)
    normalizer = fitted_to_mixture(caches, [0.8, 0.2], "a", "summary", "standardize")
    assert np.array_equal(normalizer.mean, found)
