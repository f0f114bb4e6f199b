"""Which coefficient gets how many bits: reverse water-filling, with the quantiser there is.

Coefficients are taken in groups of eight of nearly equal variance, so that one more bit for a group
is one byte of the row. The next byte goes where it takes away most of the squared error; a group
that gets none is not stored. Groups of equal bits form a band.

d coefficients of a row, m of them stored, g groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from phistill.cache.codes.bands import GROUP, SCALE_BYTES, Band
from phistill.cache.codes.levels import MAX_BITS, distortion

COMMON_BITS = 8
"""Of a coefficient where more are not WORTH it."""

WORTH = 0.98
"""Share of the squared error, 0.09 dB: bands of more bits hold few coefficients, and each takes a
scale and steps of its own."""

_SEED = 16
"""Of the permutation inside bands, which is stored: it need never be made again."""


class Allocation(NamedTuple):
    """The stored coefficients of a row, band by band."""

    order: Int[np.ndarray, " m"]
    """Their numbers; -1 where a group ends in none, in the last of them alone."""
    bands: tuple[Band, ...]


def allocate(variances: Float[np.ndarray, " d"], num_bytes: int, *, scaled: bool) -> Allocation:
    """Spend at most ``num_bytes`` on coefficients of these variances.

    ``scaled`` counts a scale for each band. Fewer bytes are spent where no coefficient varies any
    more, or where all have MAX_BITS. None has more than COMMON_BITS where that gains little.
    """
    ranked = np.argsort(-variances, kind="stable")
    ranked = np.concatenate([ranked, np.full(-len(ranked) % GROUP, -1)])
    groups = ranked.reshape(-1, GROUP)
    energy = np.where(groups >= 0, variances[groups], 0.0).sum(axis=1)
    bits = _spend(energy, num_bytes, COMMON_BITS, scaled=scaled)
    if bits.max() == COMMON_BITS:
        more = _spend(energy, num_bytes, MAX_BITS, scaled=scaled)
        if _left(energy, more) < WORTH * _left(energy, bits):
            bits = more
    random = np.random.default_rng(_SEED)
    bands, order = [], [np.zeros(0, dtype=np.int64)]
    for level in np.unique(bits[bits > 0]):
        inside = random.permutation(groups[bits == level].reshape(-1))
        bands.append(Band(int(level), len(inside)))
        order.append(inside)
    return Allocation(np.concatenate(order), tuple(bands))


def _spend(
    energy: Float[np.ndarray, " g"], num_bytes: int, most: int, *, scaled: bool
) -> Int[np.ndarray, " g"]:
    """Bits of each group, at most ``most``, with what is left after the scales of their bands."""
    bits = _bits(energy, num_bytes, most)
    num_bands = 0
    while scaled and num_bands < (needed := len(np.unique(bits[bits > 0]))):
        num_bands = needed
        bits = _bits(energy, num_bytes - SCALE_BYTES * num_bands, most)
    return bits


def _bits(energy: Float[np.ndarray, " g"], num_bytes: int, most: int) -> Int[np.ndarray, " g"]:
    """Bits of each group, the ``num_bytes`` that take away most error.

    What a bit takes away falls with every bit, so that the best are the first of each group.
    """
    left = np.array([distortion(bits) for bits in range(most + 1)])
    gain = np.multiply.outer(energy, left[:-1] - left[1:]).reshape(-1)
    best = np.argsort(-gain, kind="stable")[: max(0, num_bytes)]
    best = best[gain[best] > 0]
    return np.bincount(best // most, minlength=len(energy))


def _left(energy: Float[np.ndarray, " g"], bits: Int[np.ndarray, " g"]) -> float:
    """Squared error that these bits leave."""
    left = np.array([distortion(b) for b in range(MAX_BITS + 1)])
    return float(energy @ left[bits])


def gaussian_limit(variances: Float[np.ndarray, " d"], num_bits: float) -> float:
    """Share of the variance that any code of so many bits leaves of normal coefficients, at least.

    Reverse water-filling (Cover and Thomas, Theorem 10.3.3): D_i = min(water, l_i).
    """
    positive = variances[variances > 0]
    if len(positive) == 0:
        return 0.0
    water = water_level(variances, num_bits)
    return float(np.sum(np.minimum(positive, water)) / np.sum(positive))


def water_level(variances: Float[np.ndarray, " d"], num_bits: float) -> float:
    """The water of reverse water-filling: R = sum of 1/2 log2(l_i / D_i), by bisection.

    0 where no coefficient varies.
    """
    positive = variances[variances > 0]
    if len(positive) == 0:
        return 0.0
    logs = np.log2(positive)
    low, high = float(logs.min()) - 2 * num_bits / len(logs), float(logs.max())
    for _ in range(100):
        water = (low + high) / 2
        rate = 0.5 * float(np.sum(np.maximum(logs - water, 0)))
        low, high = (water, high) if rate > num_bits else (low, water)
    return float(2.0**high)
