"""The quantiser: points for a few coefficients at once, and what they leave of normal ones.

Codes of 1 to 4 bits take 8, 4, 2 and 2 coefficients together, to the nearest of 256 or 64 points
(the k-means of normal vectors, made by benchmarks/codes/codebooks.py): half a decibel better than
one by one. From 5 bits on each coefficient goes to the nearest of the 2^b levels of Lloyd (1982)
and Max (1960), from 9 bits on of levels of the density that is best where they are many. Points are
whole multiples of LEVEL_STEP. Blocks are rotated before they are quantised, which makes whatever
they held nearly normal: one codebook per b is enough.

b bits of a coefficient, k coefficients at once, p = 2^(b k) points.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from ..format import tensor_file

MAX_BITS = 14
"""Of one coefficient: 80 dB."""

LEVEL_STEP = 2.0**-15
"""Points are whole multiples of it, below 8: sums of 64 of them are exact, in float32 too. At 14
bits levels lie 8 steps apart and more."""

DIMENSIONS = {1: 8, 2: 4, 3: 2, 4: 2}
"""k by b; 1 for all other b."""

CODEBOOKS = "codebooks.safetensors"
"""Beside this module."""

_CONVERGED = LEVEL_STEP / 1000
_MAX_ROUNDS = 300

_MANY_BITS = 9
"""From here on Lloyd's rounds, which take seconds, would gain less than 0.02 dB."""


def _cells(levels: Float[np.ndarray, " k"]) -> tuple[Float[np.ndarray, " k"], ...]:
    """Probability and first moment of a standard normal in the cell of each level."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    below = np.array([0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges])
    density = np.exp(-0.5 * np.square(edges)) / math.sqrt(2 * math.pi)
    return np.diff(below), density[:-1] - density[1:]


@lru_cache(maxsize=MAX_BITS)
def lloyd_max(bits: int) -> Int[np.ndarray, " k"]:
    """Levels (2^bits,) of a standard normal in LEVEL_STEP, int32, ascending and symmetric.

    Lloyd's rounds begin at the quantiles of a normal of variance 3, the point density f^(1/3) that
    is best where levels are many (Panter and Dite 1951); from _MANY_BITS on there are no rounds.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits} must lie between 1 and {MAX_BITS}.")
    wide = NormalDist(0.0, math.sqrt(3.0))
    num_levels = 2**bits
    levels = np.array([wide.inv_cdf((i + 0.5) / num_levels) for i in range(num_levels)])
    levels = (levels - levels[::-1]) / 2
    for _ in range(_MAX_ROUNDS if bits < _MANY_BITS else 0):
        mass, moment = _cells(levels)
        centroids = moment / np.maximum(mass, np.finfo(np.float64).tiny)
        centroids = (centroids - centroids[::-1]) / 2
        moved = float(np.max(np.abs(centroids - levels)))
        levels = centroids
        if moved < _CONVERGED:
            break
    whole = np.rint(levels / LEVEL_STEP).astype(np.int32)
    whole.flags.writeable = False
    return whole


@lru_cache(maxsize=1)
def _made() -> tuple[dict[str, Int[np.ndarray, "p k"]], dict[str, float]]:
    """The codebooks, and what each leaves."""
    arrays, facts = tensor_file.decode(files(__package__).joinpath(CODEBOOKS).read_bytes())
    for array in arrays.values():
        array.flags.writeable = False
    return arrays, facts["distortion"]


def codebook(bits: int) -> Int[np.ndarray, "p k"]:
    """Points (2^(b k), k) in LEVEL_STEP, int32."""
    if bits in DIMENSIONS:
        return _made()[0][f"codebook{bits}"]
    return lloyd_max(bits)[:, None]


@lru_cache(maxsize=MAX_BITS + 1)
def distortion(bits: int) -> float:
    """Mean squared error that ``bits`` leave of a standard normal; 1 for no bits."""
    if bits == 0:
        return 1.0
    if bits in DIMENSIONS:
        return _made()[1][str(bits)]
    levels = lloyd_max(bits) * LEVEL_STEP
    mass, moment = _cells(levels)
    return float(1 - 2 * np.sum(levels * moment) + np.sum(np.square(levels) * mass))
