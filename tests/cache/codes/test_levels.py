"""Lloyd-Max levels of a standard normal, and what they leave of it."""

from __future__ import annotations

import numpy as np
import pytest

from phistill.cache.codes.coding import (
    BLOCK,
    LARGEST_POINT,
    PLANE,
    PLANE_NEAR,
    score_table,
    search_table,
)
from phistill.cache.codes.levels import (
    DIMENSIONS,
    LEVEL_STEP,
    MAX_BITS,
    codebook,
    distortion,
    lloyd_max,
)

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Mean squared error of the best quantiser of a standard normal (J. Max 1960, Table I)."""

BITS = range(1, MAX_BITS + 1)


def points(bits: int) -> np.ndarray:
    return codebook(bits) * LEVEL_STEP


@pytest.mark.parametrize("bits", MAX_1960)
def test_levels_of_single_coefficients_lose_what_max_tabulated(bits: int) -> None:
    levels = lloyd_max(bits) * LEVEL_STEP
    x = np.random.default_rng(bits).standard_normal(1_000_000)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    assert np.mean(np.square(x - nearest)) == pytest.approx(MAX_1960[bits], rel=0.01)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_left_is_what_samples_lose(bits: int) -> None:
    book = points(bits)
    k = book.shape[1]
    x = np.random.default_rng(bits).standard_normal((400_000 if k == 1 else 20_000, k))
    if k == 1:
        number = np.searchsorted((book[1:, 0] + book[:-1, 0]) / 2, x[:, 0])
    else:
        number = np.argmax(x @ book.T - np.square(book).sum(1) / 2, axis=1)
    assert np.mean(np.square(x - book[number])) == pytest.approx(distortion(bits), rel=0.03)


@pytest.mark.parametrize("bits", DIMENSIONS)
def test_several_at_once_lose_a_third_of_a_decibel_less_than_one_by_one(bits: int) -> None:
    assert distortion(bits) < MAX_1960[bits] * 10**-0.033


@pytest.mark.parametrize("bits", DIMENSIONS)
def test_the_search_is_exact_in_float32_and_finds_the_nearest(bits: int) -> None:
    table = score_table(codebook(bits))
    assert np.array_equal(table, np.rint(table))
    assert np.abs(table).max() <= 2**11
    k = DIMENSIONS[bits]
    r = np.random.default_rng(0).integers(-1024, 1025, (5000, k)).astype(np.float64)
    columns = np.concatenate([r, np.full((5000, 1), 1024.0), np.ones((5000, 1))], axis=1)
    scores = columns @ table
    assert np.abs(columns).dot(np.abs(table)).max() < 2**24
    assert np.array_equal(scores, columns.astype(np.float32) @ table)
    s = table[:k].T / 2
    distance = np.square(r[:, None] - s).sum(-1)
    assert np.array_equal(np.argmax(scores, axis=1), np.argmin(distance, axis=1))


@pytest.mark.parametrize("bits", [bits for bits, k in DIMENSIONS.items() if k == 2])
def test_a_plane_of_nearest_points_loses_what_a_search_loses(bits: int) -> None:
    book, table = points(bits), search_table(codebook(bits))
    assert np.abs(book).max() < PLANE / 2 / PLANE_NEAR
    x = np.random.default_rng(0).standard_normal((20_000, 2))
    place = np.clip(np.rint(x * PLANE_NEAR), -PLANE // 2, PLANE // 2 - 1) + PLANE // 2
    number = table[(place[:, 0] * PLANE + place[:, 1]).astype(int)]
    nearest = np.argmax(x @ book.T - np.square(book).sum(1) / 2, axis=1)
    lost, least = (np.mean(np.square(x - book[one])) for one in (number, nearest))
    assert least <= lost < 1.004 * least  # 0.02 dB


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_symmetric_and_ascend(bits: int) -> None:
    levels = lloyd_max(bits)
    assert levels.shape == (2**bits,)
    assert np.array_equal(levels, -levels[::-1])
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_points_are_whole_numbers_whose_sums_over_a_block_float32_holds(bits: int) -> None:
    book = codebook(bits)
    assert book.dtype == np.int32
    assert np.abs(book).max() < LARGEST_POINT <= 2**24 / BLOCK


@pytest.mark.parametrize("bits", range(9, MAX_BITS + 1))
def test_the_step_of_levels_costs_next_to_nothing_at_the_most_bits(bits: int) -> None:
    """D = sqrt(3) pi / 2 4^-b of many levels (Panter and Dite 1951)."""
    best = np.sqrt(3) * np.pi / 2 * 4.0**-bits
    assert 0.98 * best < distortion(bits) < 1.02 * best
    assert np.diff(lloyd_max(bits)).min() >= 8


def test_a_further_bit_takes_away_less_than_the_one_before() -> None:
    left = np.array([distortion(bits) for bits in range(MAX_BITS + 1)])
    assert (np.diff(left, 2) > 0).all()


@pytest.mark.parametrize("bits", [0, MAX_BITS + 1])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and {MAX_BITS}"):
        lloyd_max(bits)
