"""Hadamard matrices with integer entries +-1 and H H^T = n I.

Three constructions and their closure under Kronecker products: Sylvester (2^k), Paley I (q + 1 for
a prime power q = 3 mod 4) and Paley II (2 (q + 1) for a prime power q = 1 mod 4). Every factor is
checked exactly when it is built; a Kronecker product of Hadamard matrices is one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from phistill.errors import UsageError

from .galois import character_differences, prime_power


class Factor(NamedTuple):
    """One Kronecker factor: which construction, and its order."""

    construction: str
    order: int

    def __str__(self) -> str:
        return f"{self.construction} {self.order}"


def is_hadamard(h: Int[np.ndarray, "n n"]) -> bool:
    """Whether the entries are +-1 and H H^T = n I, decided exactly.

    The product is taken in float64 because BLAS has no integers; its entries are whole numbers of
    at most n, far below 2^53, so it is exact, and it is compared as int64.
    """
    n = h.shape[0]
    if h.shape != (n, n) or not np.isin(h, (-1, 1)).all():
        return False
    real = h.astype(np.float64)
    gram = (real @ real.T).astype(np.int64)
    return bool(np.array_equal(gram, n * np.eye(n, dtype=np.int64)))


def sylvester(n: int) -> Int[np.ndarray, "n n"]:
    """H_ij = (-1)^popcount(i & j), for n a power of two; int8."""
    if n < 1 or n & (n - 1):
        raise UsageError(f"n={n} must be a power of two for Sylvester's construction.")
    index = np.arange(n, dtype=np.uint32)
    odd = np.bitwise_count(index[:, None] & index[None, :]) & 1
    return (1 - 2 * odd.astype(np.int8)).astype(np.int8)


def paley1(n: int) -> Int[np.ndarray, "n n"]:
    """I + S with S skew, bordered from Jacobsthal's matrix; n - 1 = 3 mod 4 a prime power; int8."""
    if not _is_paley1(n):
        raise UsageError(f"n={n}: n - 1 must be a prime power of the form 4 m + 3 for Paley I.")
    skew = np.zeros((n, n), dtype=np.int8)
    skew[0, 1:] = 1
    skew[1:, 0] = -1
    skew[1:, 1:] = character_differences(n - 1)
    return skew + np.eye(n, dtype=np.int8)


def paley2(n: int) -> Int[np.ndarray, "n n"]:
    """S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]; n / 2 - 1 = 1 mod 4 a prime power; int8."""
    if not _is_paley2(n):
        raise UsageError(
            f"n={n}: n / 2 - 1 must be a prime power of the form 4 m + 1 for Paley II."
        )
    half = n // 2
    conference = np.zeros((half, half), dtype=np.int8)
    conference[0, 1:] = 1
    conference[1:, 0] = 1
    conference[1:, 1:] = character_differences(half - 1)
    spread = np.array([[1, 1], [1, -1]], dtype=np.int8)
    diagonal = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, spread) + np.kron(np.eye(half, dtype=np.int8), diagonal)


def _is_paley1(n: int) -> bool:
    return n % 4 == 0 and prime_power(n - 1) is not None


def _is_paley2(n: int) -> bool:
    return n % 4 == 0 and n // 2 % 4 == 2 and prime_power(n // 2 - 1) is not None


def _paley(n: int) -> Factor | None:
    if _is_paley1(n):
        return Factor("paley1", n)
    return Factor("paley2", n) if _is_paley2(n) else None


@lru_cache(maxsize=4096)
def factorize(n: int) -> tuple[Factor, ...] | None:
    """Kronecker factors whose orders multiply to n, or None when the constructions miss n.

    Of several factorisations the one with the fewest Paley factors is taken, then the one with the
    smallest first Paley factor, so that the answer never depends on search order.

    >>> [str(factor) for factor in factorize(768)]
    ['sylvester 64', 'paley1 12']
    """
    if n < 1 or (n > 2 and n % 4):
        return None
    if n & (n - 1) == 0:
        return (Factor("sylvester", n),)
    best: tuple[Factor, ...] | None = None
    for order in range(12, n + 1, 4):
        if n % order or order & (order - 1) == 0:
            continue
        factor = _paley(order)
        rest = factorize(n // order) if factor is not None else None
        if factor is None or rest is None:
            continue
        found = (*(() if rest == (Factor("sylvester", 1),) else rest), factor)
        if best is None or _num_paley(found) < _num_paley(best):
            best = found
    return best


def _num_paley(factors: tuple[Factor, ...]) -> int:
    return sum(factor.construction != "sylvester" for factor in factors)


_BUILDERS = {"sylvester": sylvester, "paley1": paley1, "paley2": paley2}


@lru_cache(maxsize=16)
def _build(factor: Factor) -> Int[np.ndarray, "n n"]:
    h = _BUILDERS[factor.construction](factor.order)
    assert is_hadamard(h), f"{factor} is not a Hadamard matrix."
    h.flags.writeable = False
    return h


def hadamard(n: int) -> tuple[Int[np.ndarray, "n n"], str] | None:
    """A Hadamard matrix of order n (int8) and its construction, or None when none is reached."""
    factors = factorize(n)
    if factors is None:
        return None
    h = np.ones((1, 1), dtype=np.int8)
    for factor in factors:
        h = np.kron(h, _build(factor))
    return h, " x ".join(str(factor) for factor in factors)
