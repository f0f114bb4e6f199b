"""Lloyd-Max levels of a standard normal, and what they leave of it."""

from __future__ import annotations

import numpy as np
import pytest

from phistill.stats.codes.levels import LEVEL_STEP, MAX_BITS, distortion, lloyd_max

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Mean squared error of the best quantiser of a standard normal (J. Max 1960, Table I)."""


@pytest.mark.parametrize("bits", MAX_1960)
def test_what_is_left_is_what_max_tabulated(bits: int) -> None:
    assert distortion(bits) == pytest.approx(MAX_1960[bits], rel=2e-3)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_what_is_left_is_what_samples_lose(bits: int) -> None:
    x = np.random.default_rng(bits).standard_normal(400_000)
    levels = lloyd_max(bits) * LEVEL_STEP
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    assert np.mean(np.square(x - nearest)) == pytest.approx(distortion(bits), rel=0.03)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_levels_are_symmetric_and_ascend(bits: int) -> None:
    levels = lloyd_max(bits)
    assert levels.shape == (2**bits,)
    assert np.array_equal(levels, -levels[::-1])
    assert (np.diff(levels) > 0).all()


def test_a_further_bit_takes_away_less_than_the_one_before() -> None:
    left = np.array([distortion(bits) for bits in range(MAX_BITS + 1)])
    assert (np.diff(left, 2) > 0).all()


@pytest.mark.parametrize("bits", [0, MAX_BITS + 1])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 8"):
        lloyd_max(bits)
