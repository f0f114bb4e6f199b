"""Bytes go where they take away most of the squared error."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phistill.cache.codes.bands import GROUP, row_bytes
from phistill.cache.codes.levels import MAX_BITS, distortion
from phistill.stats.codes.allocation import COMMON_BITS, allocate, gaussian_limit, water_level


def one_by_one(variances: np.ndarray, num_bytes: int, most: int) -> list[int]:
    """Bits of each group of eight, a byte at a time."""
    groups = np.sort(variances)[::-1].reshape(-1, GROUP).sum(axis=1)
    bits = [0] * len(groups)

    def gain(i: int) -> float:
        return -groups[i] * (distortion(bits[i]) - distortion(bits[i] + 1))

    heap = [(gain(i), i) for i in range(len(groups))]
    heapq.heapify(heap)
    for _ in range(num_bytes):
        _, i = heapq.heappop(heap)
        bits[i] += 1
        if bits[i] < most:
            heapq.heappush(heap, (gain(i), i))
    return bits


@pytest.mark.parametrize(("num_bytes", "most"), [(90, COMMON_BITS), (400, MAX_BITS)])
def test_it_is_the_greedy_choice_of_the_next_byte(num_bytes: int, most: int) -> None:
    variances = np.exp(np.random.default_rng(0).normal(0, 3, 400))
    wanted = one_by_one(variances, num_bytes, most)
    bands = allocate(variances, num_bytes, scaled=False).bands
    assert {band.bits: band.size // GROUP for band in bands} == {
        bits: wanted.count(bits) for bits in sorted(set(wanted) - {0})
    }
    assert max(wanted) == most


def test_more_than_eight_bits_are_given_where_they_leave_less() -> None:
    """One strong coefficient in a thousand wants more at few bytes too, and is nothing then."""
    variances = np.concatenate([np.full(8, 1e4), np.ones(1000)])
    few, many = (allocate(variances, bits * 126, scaled=True).bands for bits in (2, 8))
    assert max(few).bits == COMMON_BITS
    assert max(many).bits == MAX_BITS


@given(
    d=st.integers(1, 300),
    num_bytes=st.integers(1, 200),
    scaled=st.booleans(),
    spread=st.floats(0, 4),
)
def test_no_byte_too_many_and_no_coefficient_twice(
    d: int, num_bytes: int, scaled: bool, spread: float
) -> None:
    variances = np.exp(np.random.default_rng(d).normal(0, spread, d))
    order, bands = allocate(variances, num_bytes, scaled=scaled)
    assert row_bytes(bands, scaled=scaled) <= num_bytes
    stored = order[order >= 0]
    assert len(np.unique(stored)) == len(stored)
    assert len(order) == sum(band.size for band in bands) <= len(stored) + GROUP - 1
    assert [band.bits for band in bands] == sorted({band.bits for band in bands})
    # More bits never go to less variance, but for a group's own spread.
    lowest = np.inf
    for band in bands[::-1]:
        inside = order[len(order) - band.size :]
        order = order[: len(order) - band.size]
        assert variances[inside[inside >= 0]].max() <= lowest
        lowest = variances[inside[inside >= 0]].min()


def test_what_does_not_vary_gets_nothing() -> None:
    variances = np.zeros(64)
    variances[3:11] = 1.0
    order, bands = allocate(variances, 50, scaled=True)
    assert [(band.bits, band.size) for band in bands] == [(MAX_BITS, GROUP)]
    assert sorted(order) == list(range(3, 11))
    assert allocate(np.zeros(64), 50, scaled=True).bands == ()


def test_the_limit_of_equal_variances_is_two_to_the_minus_two_bits() -> None:
    for bits in (0.25, 1, 4):
        assert gaussian_limit(np.full(100, 3.0), 100 * bits) == pytest.approx(2 ** (-2 * bits))


def test_the_limit_of_two_variances_is_the_textbooks() -> None:
    """Water at 1: the second coefficient is left as it is, the first gets 1/2 log2(16) = 2 bits."""
    assert gaussian_limit(np.array([16.0, 1.0]), 2.0) == pytest.approx(2 / 17)
    assert water_level(np.array([16.0, 1.0]), 2.0) == pytest.approx(1)
    assert gaussian_limit(np.array([16.0, 1.0, 0.0]), 0.0) == pytest.approx(1)
    assert gaussian_limit(np.zeros(3), 5.0) == 0.0
