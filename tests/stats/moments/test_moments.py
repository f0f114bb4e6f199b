"""Moments against a two-pass float64 reference, and what merging must not change."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.errors import DegenerateMoments, UsageError
from phistill.stats.moments.blocks import BLOCK_VECTORS
from phistill.stats.moments.moments import Accumulator, Moments, merge

DEFAULT_TOLERANCE = 2e-6  # N1: float32 products
EXACT_TOLERANCE = 1e-12  # N1: float64 products


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scatter in two passes, in extended precision where the machine has it."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(axis=0)
    centred = (wide - mean).astype(np.float64)
    return mean.astype(np.float64), centred.T @ centred


def error(moments: Moments, x: np.ndarray) -> float:
    """Largest |S_ij - reference| / sqrt(S_ii S_jj), and of the mean in standard deviations.

    A float64 mean cannot be nearer than its own last digit, which is left out.
    """
    mean, scatter = reference(x)
    size = np.sqrt(np.diagonal(scatter))
    size = np.where(size > 0, size, 1.0)
    of_scatter = np.max(np.abs(moments.scatter - scatter) / np.outer(size, size))
    last_digit = 2 * np.spacing(np.abs(mean))
    of_mean = np.max((np.abs(moments.mean - mean) - last_digit) / (size / np.sqrt(len(x))))
    return float(max(of_scatter, of_mean))


def features(n: int, c: int, *, ratio: float, std: float, seed: int = 0) -> np.ndarray:
    """float32 features, correlated, channel std 0.3 to 3 times std, |mean| = ratio times that."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, c)) @ np.linalg.qr(rng.normal(size=(c, c)))[0]
    mixed += 0.5 * mixed[:, :1] + rng.choice([-ratio, ratio], size=c)
    return (mixed * rng.uniform(0.3, 3.0, size=c) * std).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("std", [1e-6, 1.0, 1e3])
def test_moments_hold_their_figure_over_the_stated_range(ratio: float, std: float) -> None:
    x = features(20_000, 24, ratio=ratio, std=std)
    assert error(Moments.of(x), x) < DEFAULT_TOLERANCE
    assert error(Moments.of(x, exact=True), x) < EXACT_TOLERANCE


def test_the_naive_one_pass_covariance_fails_where_ours_does_not() -> None:
    x = features(20_000, 24, ratio=1e3, std=1.0)
    naive = x.T @ x - len(x) * np.outer(x.mean(axis=0), x.mean(axis=0))
    size = np.sqrt(np.diagonal(reference(x)[1]))
    assert np.max(np.abs(naive - reference(x)[1]) / np.outer(size, size)) > 0.01
    assert error(Moments.of(x), x) < DEFAULT_TOLERANCE


def test_blocks_whose_mean_drifts_keep_their_figure() -> None:
    """Sorted data: every block lies many standard deviations from the first one."""
    x = features(40_000, 8, ratio=10.0, std=1.0)
    x = (x + np.linspace(0, 500, len(x), dtype=np.float32)[:, None]).astype(np.float32)
    assert error(Moments.of(x), x) < DEFAULT_TOLERANCE


@pytest.mark.parametrize("far", [1.0, 3.0, 300.0, 1e5])
def test_a_first_block_far_from_the_rest_keeps_its_figure(far: float) -> None:
    """The others must not be centred on its pilot unless they lie near it."""
    x = features(4 * BLOCK_VECTORS, 8, ratio=0.0, std=1.0)
    x[:BLOCK_VECTORS] += np.float32(far)
    assert error(Moments.of(x), x) < DEFAULT_TOLERANCE
    assert error(Moments.of(x, exact=True), x) < EXACT_TOLERANCE


def test_blocks_of_every_type_can_share_a_pilot() -> None:
    """A block that leaves float32 is taken again in float64, about the same pilot."""
    x = features(9_000, 6, ratio=1e4, std=1.0)
    wide = np.concatenate([x.astype(np.float64), 1e25 * x[:2_000].astype(np.float64)])
    accumulator = Accumulator(6)
    for block in (x[:3_000], x[3_000:].astype(np.float64), (1e25 * x[:2_000]).astype(np.float32)):
        accumulator.add(block)
    assert error(accumulator.moments(), wide) < DEFAULT_TOLERANCE


def test_squares_outside_float32_are_taken_in_float64() -> None:
    for std in (1e-25, 1e25):
        x = (np.random.default_rng(0).normal(size=(500, 6)) * std).astype(np.float32)
        assert error(Moments.of(x), x) < EXACT_TOLERANCE


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_stored_type_is_read_without_loss(dtype: type[np.floating]) -> None:
    x = features(5_000, 16, ratio=3.0, std=1.0).astype(dtype)
    assert error(Moments.of(x), x) < DEFAULT_TOLERANCE


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=8), st.randoms())
def test_any_split_in_any_order_merges_to_the_same_moments(
    sizes: list[int], random: object
) -> None:
    x = features(sum(sizes) + 2, 7, ratio=50.0, std=2.0)
    cuts = np.cumsum([0, *sizes])
    blocks = [x[a:b] for a, b in pairwise(cuts)] + [x[cuts[-1] :]]
    random.shuffle(blocks)  # type: ignore[attr-defined]
    merged = reduce(add, [Moments.of(block, exact=True) for block in blocks])
    assert merged.n == len(x)
    assert error(merged, x) < EXACT_TOLERANCE


def test_a_sum_of_moments_is_symmetric_to_the_bit() -> None:
    """A partial is stored as one triangle, so the other must be the same."""
    parts = [Moments.of(features(50, 9, ratio=3.0, std=1.0, seed=seed)) for seed in range(6)]
    total = merge(parts, 9)
    assert np.array_equal(total.scatter, total.scatter.T)


def test_adding_nothing_changes_no_bit() -> None:
    moments = Moments.of(features(100, 5, ratio=1.0, std=1.0))
    for total in (Moments.zero(5) + moments, moments + Moments.zero(5), merge([moments], 5)):
        assert total.n == moments.n
        assert total.mean.tobytes() == moments.mean.tobytes()
        assert total.scatter.tobytes() == moments.scatter.tobytes()


@pytest.mark.parametrize("exact", [False, True])
def test_masked_tokens_change_no_bit(exact: bool) -> None:
    x = features(3_000, 9, ratio=4.0, std=1.0)
    rng = np.random.default_rng(1)
    where = np.sort(rng.choice(4_000, size=3_000, replace=False))
    mask = np.zeros(4_000, dtype=bool)
    mask[where] = True
    padded = np.full((4_000, 9), np.nan, dtype=np.float32)
    padded[where] = x
    plain, masked = Moments.of(x, exact=exact), Moments.of(padded, mask=mask, exact=exact)
    assert masked.n == plain.n
    assert masked.mean.tobytes() == plain.mean.tobytes()
    assert masked.scatter.tobytes() == plain.scatter.tobytes()


def test_a_grid_of_tokens_is_the_list_of_its_vectors() -> None:
    x = features(600, 5, ratio=1.0, std=1.0)
    assert Moments.of(x.reshape(10, 60, 5)).scatter.tobytes() == Moments.of(x).scatter.tobytes()


def test_the_scatter_is_symmetric_and_the_constant_channel_has_none() -> None:
    x = features(2_000, 6, ratio=1e3, std=1.0)
    x[:, 2] = 0.1
    moments = Moments.of(x)
    assert np.array_equal(moments.scatter, moments.scatter.T)
    assert not moments.scatter[2].any()
    assert moments.mean[2] == np.float32(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_an_error_that_says_where(
    value: float, dtype: type[np.floating]
) -> None:
    x = features(300, 4, ratio=1.0, std=1.0).astype(dtype)
    x[17, 2] = value
    with pytest.raises(DegenerateMoments, match="vector 17, channel 2"):
        Moments.of(x)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="two axes"):
        Moments.of(np.ones(3))
    with pytest.raises(UsageError, match="width 3 and 4"):
        Moments.zero(3).__add__(Moments(1, np.zeros(4), np.zeros((4, 4))))
    with pytest.raises(UsageError, match=r"must be \(b, 3\)"):
        Accumulator(3).add(np.ones((2, 4)))
    with pytest.raises(UsageError, match="n=0"):
        _ = Moments.zero(2).covariance
