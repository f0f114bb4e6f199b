"""Integer Hadamard matrices: exact, for every size the three constructions reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phistill.errors import UsageError
from phistill.stats.normalizer.galois import character_differences, irreducible, prime_power
from phistill.stats.normalizer.hadamard import (
    factorize,
    hadamard,
    is_hadamard,
    paley1,
    paley2,
    sylvester,
)

REACHED = [n for n in range(1, 2049) if factorize(n) is not None]


def test_orders_below_200_that_are_missed_are_the_known_ones() -> None:
    """92, 116, 156, 172, 184, 188 need Williamson's or later constructions (or a product of 92)."""
    missed = [n for n in range(4, 200, 4) if n not in REACHED]
    assert missed == [92, 116, 156, 172, 184, 188]


@pytest.mark.parametrize("n", [*REACHED[::23], 1280, 1408, 1536, 1664, 2048])
def test_every_order_that_is_reached_is_hadamard_in_int64(n: int) -> None:
    found = hadamard(n)
    assert found is not None
    h = found[0]
    assert h.shape == (n, n)
    assert h.dtype == np.int8
    assert is_hadamard(h)


@pytest.mark.parametrize("n", [12, 20, 28, 36, 52, 100])
def test_the_exact_check_agrees_with_python_integers(n: int) -> None:
    found = hadamard(n)
    assert found is not None
    rows = found[0].tolist()
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert sum(x * y for x, y in zip(a, b, strict=True)) == (n if i == j else 0)


@given(st.sampled_from(REACHED[3:60]), st.data())
def test_one_flipped_entry_is_no_longer_hadamard(n: int, data: st.DataObject) -> None:
    found = hadamard(n)
    assert found is not None
    broken = found[0].copy()
    i, j = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    broken[i, j] *= -1
    assert not is_hadamard(broken)


def test_usual_widths_have_the_factorisation_the_paper_names() -> None:
    kinds = {n: " x ".join(map(str, factorize(n) or ())) for n in (768, 1024, 1152, 1280, 1408)}
    assert kinds == {
        768: "sylvester 64 x paley1 12",
        1024: "sylvester 1024",
        1152: "sylvester 32 x paley2 36",
        1280: "sylvester 64 x paley1 20",
        1408: "sylvester 32 x paley1 44",
    }


def test_prime_powers_add_orders_that_primes_alone_do_not_reach() -> None:
    assert [str(factor) for n in (52, 100, 244) for factor in factorize(n) or ()] == [
        "paley2 52",  # q = 25
        "paley2 100",  # q = 49
        "paley1 244",  # q = 243
    ]


@pytest.mark.parametrize("q", [3, 5, 7, 9, 13, 25, 27, 49, 81, 125, 243, 343, 625])
def test_the_character_matrix_has_jacobsthals_properties(q: int) -> None:
    """Q Q^T = q I - J, Q J = 0, symmetric for q = 1 mod 4 and skew for q = 3 mod 4."""
    table = character_differences(q).astype(np.float64)  # whole numbers far below 2^53: exact
    assert np.array_equal(table @ table.T, q * np.eye(q) - np.ones((q, q)))
    assert not table.sum(axis=1).any()
    assert np.array_equal(table.T, table if q % 4 == 1 else -table)


def test_irreducible_polynomials_have_no_root() -> None:
    for p, k in [(3, 2), (3, 5), (5, 2), (5, 4), (7, 3), (11, 2), (43, 2)]:
        f = irreducible(p, k)
        assert all(sum(a * x**i for i, a in enumerate(f)) % p for x in range(p))


@given(st.integers(0, 3000))
def test_prime_power_is_what_trial_division_says(q: int) -> None:
    primes = [p for p in range(2, q + 1) if q % p == 0 and all(p % d for d in range(2, p))]
    expected = None
    if q > 1 and len(primes) == 1:
        k = next(k for k in range(1, 12) if primes[0] ** k == q)
        expected = (primes[0], k)
    assert prime_power(q) == expected


def test_wrong_orders_are_refused_by_name() -> None:
    for build, n in ((sylvester, 12), (paley1, 52), (paley2, 16)):
        with pytest.raises(UsageError, match=f"n={n}"):
            build(n)
    with pytest.raises(UsageError, match="q=15"):
        character_differences(15)
