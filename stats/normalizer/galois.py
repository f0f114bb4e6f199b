"""The quadratic character of finite fields of odd order, which Paley's constructions need.

Elements of GF(p^k) are the integers 0 .. q-1, read as k digits in base p: the coefficients of a
polynomial of degree below k, constant term first. Arithmetic is modulo a monic irreducible
polynomial of degree k, the first one in lexicographic order.

p prime, k exponent, q = p^k.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Int

from phistill.errors import UsageError

Poly = tuple[int, ...]
"""Coefficients modulo p, constant term first."""


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, k) with q = p^k and p prime, or None when q is no prime power.

    >>> prime_power(243)
    (3, 5)
    """
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest //= p
        k += 1
    return (p, k) if rest == 1 else None


def _remainder(a: Poly, b: Poly, p: int) -> Poly:
    """a mod b for a monic b, coefficients modulo p."""
    rest = list(a)
    while len(rest) >= len(b):
        lead = rest[-1]
        shift = len(rest) - len(b)
        for i, coefficient in enumerate(b):
            rest[shift + i] = (rest[shift + i] - lead * coefficient) % p
        rest.pop()
    return tuple(rest)


def _monic(degree: int, p: int) -> list[Poly]:
    return [(*low, 1) for low in product(range(p), repeat=degree)]


@lru_cache(maxsize=64)
def irreducible(p: int, k: int) -> Poly:
    """The first monic irreducible polynomial of degree k over GF(p), by trial division."""
    divisors = [d for degree in range(1, k // 2 + 1) for d in _monic(degree, p)]
    for candidate in _monic(k, p):
        if all(any(_remainder(candidate, d, p)) for d in divisors):
            return candidate
    raise AssertionError(f"GF({p}^{k}) has no irreducible polynomial, which cannot be.")


def _digits(q: int, p: int, k: int) -> Int[np.ndarray, "q k"]:
    return (np.arange(q)[:, None] // p ** np.arange(k)) % p


def _squares(q: int, p: int, k: int) -> Int[np.ndarray, " q"]:
    """x * x for every element x, as element numbers."""
    digits = _digits(q, p, k)
    square = np.zeros((q, 2 * k - 1), dtype=np.int64)
    for i in range(k):
        for j in range(k):
            square[:, i + j] += digits[:, i] * digits[:, j]
    modulus = np.array(irreducible(p, k)[:k])
    for top in range(2 * k - 2, k - 1, -1):  # x^k = -(lower terms of the modulus)
        square[:, top - k : top] -= square[:, top, None] % p * modulus
    return (square[:, :k] % p) @ p ** np.arange(k)


@lru_cache(maxsize=64)
def character_differences(q: int) -> Int[np.ndarray, "q q"]:
    """Jacobsthal's matrix Q, Q_ij = chi(a_i - a_j), for an odd prime power q; int8.

    chi is 0 at zero, +1 at the non-zero squares and -1 elsewhere. Raises UsageError when q is not
    an odd prime power.
    """
    factors = prime_power(q)
    if factors is None or q % 2 == 0:
        raise UsageError(f"q={q} must be a power of an odd prime. Take another field order.")
    p, k = factors
    chi = np.full(q, -1, dtype=np.int8)
    chi[_squares(q, p, k)] = 1
    chi[0] = 0
    digits = _digits(q, p, k)
    difference = np.zeros((q, q), dtype=np.int64)
    for power in range(k):
        digit = digits[:, power]
        difference += (digit[:, None] - digit[None, :]) % p * p**power
    table = chi[difference]
    table.flags.writeable = False
    return table
