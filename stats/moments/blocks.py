"""Sums over one block of vectors: where a pass over a cache spends its time.

The product of a block with its transpose takes three quarters of it, so the rest is kept short:
float16 is widened, centred and squared in tiles that stay in a core's cache, memory is kept from
block to block, and the product goes to rows that are not a power of two apart.

b rows of a block, c width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Float32, Shaped

BLOCK_VECTORS = 8192
"""Rows of one product: long enough that adding its (c, c) result in float64 costs two percent,
short enough that a float32 block of width 1024 is 32 MiB and its rounding stays near 1e-7."""

PILOT_VECTORS = 64
"""Rows that a pilot comes from, about."""

TILE_VALUES = 2**17
"""Values of one tile: 512 KiB of float32, a part of any core's second-level cache."""

ROW_PADDING = 16
"""Extra columns of a product in memory. NumPy mirrors the triangle that SYRK leaves out entry by
entry, and at widths such as 1024 all entries of a column would share a few lines of the cache."""


class BlockSums(NamedTuple):
    """What one block contributes, products and squared norms in the type they were taken in."""

    offset: Float[np.ndarray, " c"]
    """Mean of the block minus the pilot, float64."""
    products: Float[np.ndarray, "c c"]
    """Of the block minus the pilot with itself."""
    squared_norms: Float[np.ndarray, " b"]
    """Squared distances to the mean of the block."""


Real = type[np.float32] | type[np.float64]

Widen = Callable[[Shaped[np.ndarray, "b c"], Shaped[np.ndarray, "b c"]], None]
"""Writes its second argument into its first, of a wider type."""


class Pilot(NamedTuple):
    """What blocks are centred on, float64: any value will do that is not far from their mean."""

    mean: Float[np.ndarray, " c"]
    """Of a few rows, rounded to what float32 holds too."""
    std: Float[np.ndarray, " c"]
    """Of the same rows."""

    @classmethod
    def of(cls, block: Shaped[np.ndarray, "b c"]) -> Pilot:
        """From rows that are spread over a block."""
        with np.errstate(over="ignore", invalid="ignore"):  # Accumulator looks at the sums
            rows = block[:: max(1, len(block) // PILOT_VECTORS)].astype(np.float64)
            mean = np.matmul(np.full(len(rows), 1 / len(rows)), rows)
            rows -= mean
            variance = np.einsum("rc,rc->c", rows, rows) / len(rows)
            rounded = mean.astype(np.float32).astype(np.float64)
        return cls(np.where(np.isfinite(rounded), rounded, mean), np.sqrt(variance))

    def near(self, other: Pilot) -> bool:
        """Whether no channel's means lie further apart than their standard deviations, added."""
        return bool(np.all(np.abs(self.mean - other.mean) <= self.std + other.std))


class BlockSummer:
    """Sums blocks with NumPy, in memory it keeps from one block to the next.

    Fresh megabytes for every block cost more in page faults than centring does. The products that
    are returned are overwritten by the next call.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._products: dict[Real, Shaped[np.ndarray, "c c"]] = {}
        self._centred: dict[Real, Shaped[np.ndarray, "b c"]] = {}

    def __call__(
        self, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"], dtype: Real
    ) -> BlockSums:
        """Centre on the pilot, and sum: the offset in float64, the rest in dtype."""
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the diagonal
            centred, mean, squared_norms = self._centre(block, pilot.astype(dtype))
            products = gram(centred, out=self._products[dtype])
            offset: Float[np.ndarray, " c"] = mean.astype(dtype)
            # |x - mean|^2 = |x - pilot|^2 - 2 (x - pilot).offset + |offset|^2
            squared_norms += offset @ offset - 2 * (centred @ offset)
        return BlockSums(mean, products, np.maximum(squared_norms, 0))

    def _centre(
        self, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"]
    ) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, " c"], Float[np.ndarray, " b"]]:
        """x - pilot, the mean of that in float64, and the square of each of its rows."""
        if can_shift(block, pilot.dtype):
            sums = self._centre_by(shift, block, pilot)
            if _surely_finite(pilot, sums[2]) or np.isfinite(block).all():
                return sums
        return self._centre_by(np.copyto, block, pilot)

    def _centre_by(
        self, widen: Widen, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"]
    ) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, " c"], Float[np.ndarray, " b"]]:
        dtype = pilot.dtype.type
        centred = self._memory(len(block), dtype)
        squared_norms = np.empty(len(block), dtype)
        total: Float[np.ndarray, " c"] = np.zeros(self.width)
        tile_rows = max(1, TILE_VALUES // self.width)
        ones: Shaped[np.ndarray, " _"] = np.ones(tile_rows, dtype)
        for start in range(0, len(block), tile_rows):
            tile = centred[start : start + tile_rows]
            widen(tile, block[start : start + tile_rows])
            tile -= pilot
            total += np.matmul(ones[: len(tile)], tile)
            np.vecdot(tile, tile, out=squared_norms[start : start + tile_rows])
        return centred, total / len(block), squared_norms

    def _memory(self, rows: int, dtype: Real) -> Float[np.ndarray, "b c"]:
        """Room for a centred block, kept while blocks do not grow."""
        if dtype not in self._products:
            self._products[dtype] = padded(self.width, dtype)
            self._centred[dtype] = np.empty((0, self.width), dtype)
        if len(self._centred[dtype]) < rows:
            self._centred[dtype] = np.empty((rows, self.width), dtype)
        return self._centred[dtype][:rows]


def padded(width: int, dtype: Real) -> Shaped[np.ndarray, "c c"]:
    """Room for a product, its rows ROW_PADDING entries further apart than they are long."""
    return np.empty((width, width + ROW_PADDING), dtype)[:, :width]


def gram(x: Float[np.ndarray, "b c"], *, out: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    """x^T x, symmetric to the bit: for one array on both sides NumPy takes SYRK, half the work."""
    return np.matmul(x.T, x, out=out)


def can_shift(x: Shaped[np.ndarray, "b c"], target: np.dtype[Any]) -> bool:
    """Whether shift() may widen x to this type: float16 to float32, in a thread that reads
    subnormal float32 as they are. torch and code that gcc made with -ffast-math can set it to 0.
    """
    halves = x.dtype == "<f2" and target == np.float32 and sys.byteorder == "little"
    return bool(halves and np.float32(2.0**-136) * np.float32(2.0**112) != 0)


def shift(out: Float32[np.ndarray, "b c"], x: Float16[np.ndarray, "b c"]) -> None:
    """Write x into out at a third of NumPy's cost for a cast; NaN and infinity become numbers
    >= 65536.

    With its sign left in bit 31 and all else moved 13 bits to the left, a finite float16 is a
    float32 whose exponent is 112 too small. Widened as an integer, it repeats its sign in bits 28
    to 30 after that move, and the mask clears those.
    """
    bits = out.view(np.int32)
    np.copyto(bits, x.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)


def _surely_finite(pilot: Float32[np.ndarray, " c"], squares: Float32[np.ndarray, " b"]) -> bool:
    """Whether squares of shift(x) - pilot are too small for any of x to have been NaN or infinite.

    False says nothing; nor can a NaN, in either argument, compare as small.
    """
    nearest = 65536 - np.max(np.abs(pilot))
    return bool(np.max(squares) < 0.99 * nearest**2)
