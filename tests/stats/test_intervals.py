"""Bootstrap intervals: how often they hold the truth, pairing, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from phistill.errors import UsageError
from phistill.stats import intervals
from phistill.stats.intervals import (
    MIN_IMAGES,
    Interval,
    by_image,
    difference,
    interval,
    ratio,
    t_quantile,
    values_and_ones,
)

Columns = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Columns]
NUM_STUDIES = 1000


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation of a thousand studies needs no exact ends of each."""
    monkeypatch.setattr(intervals, "NUM_DRAWS", 400)


def gaussian(generator: np.random.Generator, n: int) -> Columns:
    """Cosines, say."""
    return values_and_ones(0.7 + 0.1 * generator.standard_normal(n))


def hits(generator: np.random.Generator, n: int) -> Columns:
    """An accuracy of 0.8."""
    return values_and_ones(generator.random(n) < 0.8)


def errors(generator: np.random.Generator, n: int) -> Columns:
    """Squared errors and deviations with long tails, as images have them: 0.3 unexplained."""
    deviation = np.exp(0.5 * generator.standard_normal(n))
    share = np.exp(0.3 * generator.standard_normal(n) - 0.3**2 / 2)
    return np.stack([0.3 * share * deviation, deviation], 1)


CASES: dict[str, tuple[Draw, float, int]] = {
    "the mean of few images": (gaussian, 0.7, MIN_IMAGES),
    "an unexplained variance of few images": (errors, 0.3, 40),
    "an unexplained variance": (errors, 0.3, 100),
    "an accuracy": (hits, 0.8, 100),
}


@pytest.mark.guarantee("N10", "93 to 97 % of 1,000 simulated studies hold the truth")
@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("case", CASES)
def test_intervals_hold_the_truth_in_93_to_97_percent_of_studies(case: str) -> None:
    draw, truth, n = CASES[case]
    generator = np.random.default_rng(4)
    found = [interval(draw(generator, n)) for _ in range(NUM_STUDIES)]
    assert 0.93 <= np.mean([_holds(one, truth) for one in found]) <= 0.97


@pytest.mark.guarantee("N10", "the same for paired differences")
@pytest.mark.usefixtures("fewer_draws")
def test_paired_differences_hold_the_truth_in_93_to_97_percent_of_studies() -> None:
    generator = np.random.default_rng(5)
    held, widths, alone = [], [], []
    for _ in range(NUM_STUDIES):
        one = errors(generator, 60)
        other = one.copy()
        other[:, 0] *= 1.1 * np.exp(0.1 * generator.standard_normal(60) - 0.1**2 / 2)
        apart = difference(other, one)
        held.append(_holds(apart, 0.03))
        assert apart.low is not None
        assert apart.high is not None
        widths.append(apart.high - apart.low)
        each = interval(other)
        assert each.low is not None
        assert each.high is not None
        alone.append(each.high - each.low)
    assert 0.93 <= np.mean(held) <= 0.97
    assert np.mean(widths) < np.mean(alone) / 2, "what both find hard has cancelled"


@pytest.mark.usefixtures("fewer_draws")
def test_intervals_that_ignore_the_number_of_images_hold_the_truth_too_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "_outer_share", lambda n: 0.05)
    generator = np.random.default_rng(4)
    found = [interval(gaussian(generator, 100)) for _ in range(NUM_STUDIES)]
    assert np.mean([_holds(one, 0.7) for one in found]) < 0.93


def _holds(found: Interval, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


@given(st.integers(MIN_IMAGES, 60), st.floats(-5, 5), st.integers(0, 99))
def test_a_figure_lies_within_its_interval_and_moves_with_its_values(
    n: int, shift: float, seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal(n)
    plain, moved = interval(values_and_ones(values)), interval(values_and_ones(values + shift))
    assert plain.low is not None
    assert plain.high is not None
    assert moved.low is not None
    assert plain.low <= plain.value <= plain.high
    assert moved.low == pytest.approx(plain.low + shift, abs=1e-9)
    assert plain.value == pytest.approx(values.mean())


def test_the_same_images_give_the_same_interval_however_large_a_block_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = errors(np.random.default_rng(0), 50)
    whole = interval(columns)
    assert whole == interval(columns)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 50 * 8 * 500)
    other = interval(columns)
    assert other.low == pytest.approx(whole.low)
    assert other.high == pytest.approx(whole.high)


def test_a_student_does_not_differ_from_itself() -> None:
    columns = errors(np.random.default_rng(0), 50)
    apart = difference(columns, columns)
    assert (apart.low, apart.value, apart.high) == (0, 0, 0)
    assert not apart.is_positive
    assert not apart.is_negative
    with pytest.raises(UsageError, match="the same images"):
        difference(columns, columns[1:])


def test_few_images_have_a_figure_and_no_interval() -> None:
    found = interval(errors(np.random.default_rng(0), MIN_IMAGES - 1))
    assert found.low is found.high is found.largest is None
    assert 0.2 < found.value < 0.4
    assert np.isnan(interval(np.empty((0, 2))).value)


def test_views_of_an_image_are_drawn_together() -> None:
    columns = np.arange(12.0).reshape(6, 2)
    images = np.array(["b", "a", "b", "c", "a", "c"])
    np.testing.assert_array_equal(by_image(columns, images), [[10, 12], [4, 6], [16, 18]])


def test_any_function_of_sums_has_an_interval() -> None:
    generator = np.random.default_rng(0)
    # Mean intersection over union of two classes: intersections, then unions.
    unions = generator.integers(5, 20, (100, 2)).astype(float)
    columns = np.concatenate([unions * [0.5, 0.9], unions], 1)

    def mean_iou(sums: Columns) -> Columns:
        return np.asarray((sums[:, :2] / sums[:, 2:]).mean(1))

    found = interval(columns, mean_iou)
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7)
    assert found.high == pytest.approx(0.7)


def test_quantiles_of_student_are_those_of_scipy() -> None:
    for share in (0.005, 0.025, 0.1, 0.9):
        for freedom in (1, 2):
            wanted = stats.t.ppf(share, freedom)
            assert t_quantile(share, freedom) == pytest.approx(wanted, rel=1e-9)
        if share == 0.025:
            assert t_quantile(share, 3) == pytest.approx(stats.t.ppf(share, 3), rel=2e-3)
        assert t_quantile(share, 6) == pytest.approx(stats.t.ppf(share, 6), rel=1e-3)
        assert t_quantile(share, 29) == pytest.approx(stats.t.ppf(share, 29), rel=1e-5)


def test_a_ratio_over_nothing_is_no_number() -> None:
    assert np.isnan(ratio(np.zeros((1, 2)))).all()
