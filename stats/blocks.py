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
"""Rows whose mean is the pilot; any pilot within some standard deviations of the mean will do."""

TILE_VALUES = 2**17
"""Values of one tile: 512 KiB of float32, a part of any core's second-level cache."""

ROW_PADDING = 16
"""Extra columns of a product in memory. NumPy mirrors the triangle that SYRK leaves out entry by
entry, and at widths such as 1024 all entries of a column would share a few lines of the cache."""


class BlockSums(NamedTuple):
    """What one block contributes, products and energies in the type they were taken in."""

    pilot: Float[np.ndarray, " c"]
    """What the block was centred on, float64."""
    offset: Float[np.ndarray, " c"]
    """Mean of the block minus pilot, float64."""
    products: Float[np.ndarray, "c c"]
    energies: Float[np.ndarray, " b"]
    split: bool = False
    """Whether products has the even channels before the odd ones, as shift() leaves them."""

    @property
    def squares(self) -> Float[np.ndarray, " c"]:
        """The diagonal of the products, by channel."""
        diagonal = np.diagonal(self.products)
        return _joined(diagonal) if self.split else diagonal

    def add_products_to(self, total: Float[np.ndarray, "c c"]) -> None:
        """total += products, by channel."""
        if not self.split:
            total += self.products
            return
        half = len(total) // 2
        parts = (slice(0, None, 2), slice(0, half)), (slice(1, None, 2), slice(half, None))
        for rows, from_rows in parts:
            for columns, from_columns in parts:
                total[rows, columns] += self.products[from_rows, from_columns]


Real = type[np.float32] | type[np.float64]

Widen = Callable[[Shaped[np.ndarray, "b c"], Shaped[np.ndarray, "b c"]], None]
"""Writes its second argument into its first, of a wider type."""

TakeBlock = Callable[[Shaped[np.ndarray, "b c"], Real], BlockSums]
"""Sums of one block (b, c), its products taken in the given type."""


class BlockSummer:
    """Sums blocks with NumPy, in memory it keeps from one block to the next.

    Fresh megabytes for every block cost more in page faults than centring does. The products that
    are returned are overwritten by the next call.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._products: dict[Real, Shaped[np.ndarray, "c c"]] = {}
        self._centred: dict[Real, Shaped[np.ndarray, "b c"]] = {}

    def __call__(self, block: Shaped[np.ndarray, "b c"], dtype: Real) -> BlockSums:
        """Centre on a pilot, and sum: pilot and offset in float64, the rest in dtype."""
        stride = max(1, len(block) // PILOT_VECTORS)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the diagonal
            pilot = np.asarray(np.mean(block[::stride], axis=0, dtype=np.float64)).astype(dtype)
            centred, mean, energies, split = self._centre(block, pilot)
            products = gram(centred, out=self._products[dtype])
            offset: Float[np.ndarray, " c"] = mean.astype(dtype)
            # |x - mean|^2 = |x - pilot|^2 - 2 (x - pilot).offset + |offset|^2
            energies += offset @ offset - 2 * (centred @ offset)
        return BlockSums(
            pilot.astype(np.float64),
            _joined(mean) if split else mean,
            products,
            np.maximum(energies, 0),
            split,
        )

    def _centre(
        self, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"]
    ) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, " c"], Float[np.ndarray, " b"], bool]:
        """x - pilot, the mean of that in float64, and the square of each of its rows; then whether
        even channels come before odd ones in the first two."""
        if can_shift(block, pilot.dtype):
            sums = self._centre_by(shift, block, np.concatenate([pilot[0::2], pilot[1::2]]))
            if _surely_finite(pilot, sums[2]) or np.isfinite(block).all():
                return *sums, True
        return *self._centre_by(np.copyto, block, pilot), False

    def _centre_by(
        self, widen: Widen, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"]
    ) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, " c"], Float[np.ndarray, " b"]]:
        dtype = pilot.dtype.type
        centred = self._memory(len(block), dtype)
        energies = np.empty(len(block), dtype)
        total: Float[np.ndarray, " c"] = np.zeros(self.width)
        tile_rows = max(1, TILE_VALUES // self.width)
        ones: Shaped[np.ndarray, " _"] = np.ones(tile_rows, dtype)
        for start in range(0, len(block), tile_rows):
            tile = centred[start : start + tile_rows]
            widen(tile, block[start : start + tile_rows])
            tile -= pilot
            total += np.matmul(ones[: len(tile)], tile)
            np.vecdot(tile, tile, out=energies[start : start + tile_rows])
        return centred, total / len(block), energies

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
    """Whether shift() may widen x to this type: pairs of float16 to float32, in a thread that reads
    subnormal float32 as they are. torch and code that gcc made with -ffast-math can set it to 0.
    """
    pairs = x.dtype == "<f2" and x.flags.c_contiguous and x.shape[-1] % 2 == 0
    subnormals = np.float32(2.0**-136) * np.float32(2.0**112) != 0
    return bool(pairs and subnormals and target == np.float32 and sys.byteorder == "little")


def shift(out: Float32[np.ndarray, "b c"], x: Float16[np.ndarray, "b c"]) -> None:
    """Write x into out, the even channels before the odd ones, at a third of NumPy's cost for a
    cast; NaN and infinity become numbers >= 65536.

    With its sign left in bit 31 and all else moved 13 bits to the left, a finite float16 is a
    float32 whose exponent is 112 too small. Two neighbours are moved as one int32: in its upper
    half for the odd channel, after a shift for the even one; moving back to the right by 3 repeats
    the sign in bits 28 to 30, and the mask clears those and what is left of the neighbour.
    """
    pairs, bits = x.view(np.int32), out.view(np.int32)
    half = pairs.shape[1]
    even, odd = bits[:, :half], bits[:, half:]
    np.left_shift(pairs, 16, out=even)
    np.right_shift(even, 3, out=even)
    np.right_shift(pairs, 3, out=odd)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)


def _joined(halves: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """By channel, what has the even channels before the odd ones."""
    return halves.reshape(2, -1).T.reshape(-1)


def _surely_finite(pilot: Float32[np.ndarray, " c"], squares: Float32[np.ndarray, " b"]) -> bool:
    """Whether squares of shift(x) - pilot are too small for any of x to have been NaN or infinite.

    False says nothing; nor can a NaN, in either argument, compare as small.
    """
    nearest = 65536 - np.max(np.abs(pilot))
    return bool(np.max(squares) < 0.99 * nearest**2)
