"""A set of rows answers as an ascending array of them does."""

from __future__ import annotations

import numpy as np
import pytest

from phistill.cache.row_set import RowSet


@pytest.mark.parametrize("size", [0, 1, 7, 63, 64, 65, 128, 1000, 4097])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98, 1.0])
def test_rank_and_select_are_those_of_the_array(size: int, share: float) -> None:
    rows = np.flatnonzero(np.random.default_rng(size).random(size) < share)
    some = RowSet(rows)
    assert len(some) == len(rows)
    np.testing.assert_array_equal(some.to_array(), rows)
    assert some.last == (rows[-1] if rows.size else -1)
    places = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(some.select(places), rows[places])
    anywhere = np.arange(size + 200)
    np.testing.assert_array_equal(some.rank(anywhere), np.searchsorted(rows, anywhere))


def test_a_row_takes_two_bits() -> None:
    some = RowSet(np.arange(640_000))
    assert some.num_bytes <= 640_000 / 4 + 8


def test_sets_are_told_apart() -> None:
    assert RowSet(np.array([1, 5])).digest == RowSet(np.array([1, 5])).digest
    assert RowSet(np.array([1, 5])).digest != RowSet(np.array([1, 6])).digest
