"""Count, mean and scatter of feature vectors: sums that merge exactly.

Vectors come in blocks. A block is centred on a pilot, the mean of a few rows, before its second
moments are taken, because the product of uncentred float32 features loses everything when the mean
is large. Block products are float32 (or float64 when exact), sums over blocks are float64. Blocks
share the pilot of the first of them for as long as their own would lie near it; then the next run
begins. With m_k the mean of run k, n_k its vectors, d_k = m_k - pilot_k, and m the total mean,

    scatter = sum_k (P_k - n_k d_k d_k^T) + sum_k n_k (m_k - m)(m_k - m)^T

where P_k = sum (x - pilot_k)(x - pilot_k)^T: no pilot has to be good, and none goes further than
from block to block of one Accumulator.

n vectors, c width, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Shaped

from phistill.compute.blas import one_blas_thread
from phistill.errors import DegenerateMoments, UsageError

from .blocks import BLOCK_VECTORS, BlockSummer, BlockSums, Pilot
from .squared_norms import SquaredNorms

FLOAT64_EPS = float(np.finfo(np.float64).eps)
_SMALLEST_SQUARE = 1e-30  # a float32 sum of squares below this has met subnormal numbers


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of n feature vectors, in float64.

    scatter is sum_i (x_i - mean)(x_i - mean)^T: a sum, not an average, so that
    two disjoint blocks merge exactly. eps is the rounding of the products it was summed from: the
    float32 epsilon, or the float64 epsilon for exact moments.
    """

    n: int
    mean: Float[np.ndarray, " c"]
    scatter: Float[np.ndarray, "c c"]
    eps: float = FLOAT64_EPS

    def __post_init__(self) -> None:
        if self.n < 0 or self.scatter.shape != 2 * self.mean.shape:
            raise UsageError(
                f"Moments of n={self.n}, mean {self.mean.shape}, scatter {self.scatter.shape}: "
                "n must not be negative, mean must be (c,) and scatter (c, c)."
            )

    def __repr__(self) -> str:
        return f"Moments(n={self.n}, width={self.width})"

    def __add__(self, other: Moments) -> Moments:
        """Merge two disjoint blocks (Chan, Golub, LeVeque 1983, Eq. 1.5)."""
        if self.width != other.width:
            raise UsageError(
                f"Moments of width {self.width} and {other.width} cannot be added. "
                "They belong to different teachers or token kinds."
            )
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        delta = other.mean - self.mean  # (c,)
        mean = self.mean + delta * (other.n / n)
        # (c, c); the weight goes in as a square root, or it is not symmetric to the bit
        shift = delta * np.sqrt(self.n * other.n / n)
        scatter = np.outer(shift, shift)
        scatter += self.scatter
        scatter += other.scatter
        return Moments(n, mean, scatter, max(self.eps, other.eps))

    @property
    def width(self) -> int:
        """c, the length of one vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[np.ndarray, "c c"]:
        """Population covariance, scatter / n."""
        if self.n < 1:
            raise UsageError("The covariance of n=0 vectors does not exist. Give at least one.")
        return self.scatter / self.n

    @property
    def variance(self) -> Float[np.ndarray, " c"]:
        """Population variance of each channel, scatter_cc / n."""
        if self.n < 1:
            raise UsageError("The variance of n=0 vectors does not exist. Give at least one.")
        return np.diagonal(self.scatter) / self.n

    @cached_property
    def spectrum(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c c"]]:
        """Eigenvalues, ascending, and eigenvectors in columns, of the covariance.

        Kept, because every normalizer begins with them and nothing in a fit takes longer.
        """
        with one_blas_thread():  # or the last bits depend on the number of cores
            values, vectors = np.linalg.eigh(self.covariance)
        return values, vectors

    @classmethod
    def zero(cls, width: int) -> Moments:
        """The moments of nothing, which add to others without changing them."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(
        cls,
        x: Shaped[np.ndarray, "... c"],
        *,
        mask: Shaped[np.ndarray, "*batch"] | None = None,
        exact: bool = False,
    ) -> Moments:
        """Moments of all vectors along the last axis, those where mask is False left out.

        exact takes float64 products, otherwise they are float32. Raises DegenerateMoments for NaN
        or infinite values.
        """
        if x.ndim < 2:
            raise UsageError(f"x has shape {x.shape}; vectors need two axes or more, (..., c).")
        vectors = x.reshape(-1, x.shape[-1]) if mask is None else x[np.asarray(mask, dtype=bool)]
        accumulator = Accumulator(vectors.shape[-1], exact=exact)
        with one_blas_thread():  # or the last bits depend on the number of cores
            for start in range(0, len(vectors), BLOCK_VECTORS):
                accumulator.add(vectors[start : start + BLOCK_VECTORS])
            return accumulator.moments()


def merge(parts: Iterable[Moments], width: int) -> Moments:
    """The sum of disjoint moments, added from left to right."""
    total = Moments.zero(width)
    for part in parts:
        total = total + part
    return total


class Accumulator:
    """Adds blocks of vectors and gives their Moments.

    squared_norms is the histogram of their squared distances to the mean of their own block. A
    summer may be shared by accumulators that take turns: it holds memory and no sums.
    """

    def __init__(
        self, width: int, *, exact: bool = False, summer: BlockSummer | None = None
    ) -> None:
        self.width = width
        self.exact = exact
        self._summer = BlockSummer(width) if summer is None else summer
        self.squared_norms = SquaredNorms.zero()
        self._before = Moments.zero(width)
        self._run: _Run | None = None

    def add(self, block: Shaped[np.ndarray, "b c"]) -> None:
        """Add one block of finite vectors of any float or integer type.

        Raises DegenerateMoments when the block holds NaN or infinity.
        """
        if block.ndim != 2 or block.shape[1] != self.width:
            raise UsageError(f"A block of shape {block.shape} must be (b, {self.width}).")
        if len(block) == 0:
            return
        pilot = Pilot.of(block)
        if self._run is None or not pilot.near(self._run.pilot):
            self._before = self.moments()
            self._run = _Run(pilot)
        sums = self._sums(block, self._run.pilot.mean)
        self._run.add(len(block), sums)
        self.squared_norms = self.squared_norms + SquaredNorms.of(sums.squared_norms)

    def _sums(self, block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"]) -> BlockSums:
        if not self.exact and block.dtype.itemsize <= 4:
            sums = self._summer(block, pilot, np.float32)
            if not _left_float32(block, pilot, sums):
                return sums
        sums = self._summer(block, pilot, np.float64)
        if not np.isfinite(np.diagonal(sums.products)).all():
            raise DegenerateMoments(_where_not_finite(block))
        return sums

    def moments(self) -> Moments:
        """Moments of everything added so far."""
        return self._before if self._run is None else self._before + self._run.moments()


class _Run:
    """Sums of blocks about one pilot."""

    def __init__(self, pilot: Pilot) -> None:
        self.pilot = pilot
        self._n = 0
        self._offsets: Float[np.ndarray, " c"] = np.zeros(len(pilot.mean))
        self._products: Float[np.ndarray, "c c"] | None = None
        self._eps = FLOAT64_EPS

    def add(self, n: int, sums: BlockSums) -> None:
        self._n += n
        self._offsets += n * sums.offset
        if self._products is None:
            self._products = sums.products.astype(np.float64)
        else:
            self._products += sums.products
        self._eps = max(self._eps, float(np.finfo(sums.products.dtype).eps))

    def moments(self) -> Moments:
        if self._products is None:
            return Moments.zero(len(self.pilot.mean))
        offset = self._offsets / self._n
        # The weight goes in as a square root, or it is not symmetric to the bit.
        between = np.sqrt(self._n) * offset
        scatter = np.multiply.outer(between, between)
        np.subtract(self._products, scatter, out=scatter)
        return Moments(self._n, self.pilot.mean + offset, scatter, self._eps)


def _left_float32(
    block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"], sums: BlockSums
) -> bool:
    """Whether a sum of squares overflowed or lost digits to subnormal numbers in float32."""
    squares = np.diagonal(sums.products)
    tiny = squares < _SMALLEST_SQUARE  # dead channels are, and lose nothing
    finite = np.isfinite(squares).all() and np.isfinite(sums.squared_norms).all()
    return not finite or bool(np.any(block[:, tiny] != pilot[tiny]))


def _where_not_finite(block: Shaped[np.ndarray, "b c"]) -> str:
    bad = ~np.isfinite(block)
    if not bad.any():
        return (
            f"The squares of values up to {np.max(np.abs(block)):.3g} do not fit into float64. "
            "Scale the features down."
        )
    row, channel = (int(i) for i in np.argwhere(bad)[0])
    return (
        f"{int(bad.any(axis=1).sum())} of {len(block)} vectors hold NaN or infinity, the first at "
        f"vector {row}, channel {channel}. Features must be finite."
    )
