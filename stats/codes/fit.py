"""Fits a codec: axes from moments, variances of coefficients from pilot rows.

The moments may be of all training rows; the pilot is some of them. Coefficients are many and pilot
rows few, so a coefficient's variance and mean are shrunk as if PRIOR_ROWS rows more had been seen:
rows whose mean is the channels', and whose variance is the axis' times that of the frequency. The
variance of an axis is shrunk towards that of all in the same way, by PRIOR_ROWS vectors: fewer
vectors than channels leave axes that seem not to vary, and a row that does there would need a scale
that spoils its band.

t = h w tokens, c width, d = t c coefficients, n pilot rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.codes import coding
from phistill.cache.codes.codec import RowCodec, check_rows
from phistill.cache.codes.levels import codebook, distortion
from phistill.errors import UsageError

from ..moments.moments import Moments
from ..normalizer.methods import check_spread, eigenbasis
from .allocation import allocate, gaussian_limit

PRIOR_ROWS = 8
"""Weight of what is known of a coefficient without its own rows."""

STEP = 2.0**-20
"""Of the entries of matrices. A coefficient may reach 2^33 units before a sum rounds."""

UNIT_OF_PHI = -14
"""The unit is about 2^-14 phi: rounding to it leaves 2^-28 / 12 of the variance, 95 dB."""

SMALL_ROW = 256
"""Bytes above which a row always has scales. They cost little there, and without them a row that is
stronger than the pilot's is clipped."""

TRIAL_ROWS = 100
"""Pilot rows that it takes to tell whether a smaller row does better without."""


def dct(n: int) -> Float[np.ndarray, "n n"]:
    """The orthonormal DCT-II, frequencies in rows: cos(pi (2 i + 1) k / 2 n) sqrt(2 / n), and
    1 / sqrt(n) for k = 0."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    matrix = np.cos(np.pi * (2 * i + 1) * k / (2 * n)) * np.sqrt(2 / n)
    matrix[0] = 1 / np.sqrt(n)
    return matrix


class Basis(NamedTuple):
    """The orthogonal part of a codec, and the step of its coefficients."""

    row_shape: tuple[int, ...]
    mean: Float[np.ndarray, " c"]
    axes: Float[np.ndarray, "c c"]
    down: Float[np.ndarray, "h h"]
    across: Float[np.ndarray, "w w"]
    unit_exponent: int

    @classmethod
    def of(
        cls, moments: Moments, row_shape: tuple[int, ...], grid: tuple[int, int] | None
    ) -> Basis:
        t, c = row_shape if len(row_shape) == 2 else (1, *row_shape)
        h, w = grid or (1, t)
        if len(row_shape) > 2 or c != moments.width or h * w != t:
            raise UsageError(
                f"Pilot rows of shape {row_shape} do not fit to moments of width {moments.width} "
                f"and a grid of {h} x {w} tokens."
            )
        phi = float(np.sqrt(np.mean(moments.variance)))
        return cls(
            row_shape=tuple(row_shape),
            mean=moments.mean,
            axes=_stepped(eigenbasis(moments)[1]),
            down=_stepped(np.eye(h) if grid is None else dct(h)),
            across=_stepped(np.eye(w) if grid is None else dct(w)),
            unit_exponent=int(np.floor(np.log2(phi))) + UNIT_OF_PHI,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.down) * len(self.across)

    def tables(self, mean_row: Float[np.ndarray, "t c"]) -> coding.Tables:
        """Enough to transform."""
        none = np.zeros(0)
        return coding.Tables(
            mean_row, self.axes, self.down, self.across, none, none, none, none, {}, {}, {}
        )

    @property
    def layout(self) -> coding.Layout:
        grid = (len(self.down), len(self.across))
        return coding.Layout(grid, 2.0**self.unit_exponent, (), False)


def _stepped(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    return np.rint(matrix / STEP) * STEP


class _Sums:
    """Sums over pilot rows of coefficients of x - mean, in units, and of their squares."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        shape = (basis.num_tokens, len(basis.mean))
        self._tables = basis.tables(np.broadcast_to(basis.mean, shape))
        self._n = 0
        self._sum, self._squares = np.zeros(shape), np.zeros(shape)

    def add(self, block: Shaped[np.ndarray, "n ..."]) -> None:
        check_rows(block.shape, self.basis.row_shape)
        if not np.isfinite(block).all():
            raise UsageError(
                "A pilot row holds NaN or infinity. Only finite features can be coded."
            )
        shape = self._sum.shape
        step = max(1, 2**21 // self._sum.size)
        for start in range(0, len(block), step):
            rows = block[start : start + step]
            y = coding.transform(self._tables, self.basis.layout, rows.reshape(len(rows), *shape))
            y = y.reshape(len(rows), *shape)
            self._n += len(rows)
            self._sum += y.sum(axis=0)
            self._squares += np.einsum("ntc,ntc->tc", y, y)

    def shrunk(
        self, eigenvalues: Float[np.ndarray, " c"]
    ) -> tuple[Float[np.ndarray, "t c"], Float[np.ndarray, " d"]]:
        """The mean row, and the variances of coefficients about it in squared units."""
        unit = self.basis.layout.unit
        mean = self._sum / (self._n + PRIOR_ROWS)
        squares = self._squares - 2 * mean * self._sum + self._n * np.square(mean)
        axis = eigenvalues / unit**2
        frequency = squares.sum(axis=1) / self._n / axis.sum()
        prior = np.multiply.outer(frequency, axis)
        variances = (np.maximum(squares, 0.0) + PRIOR_ROWS * prior) / (self._n + PRIOR_ROWS)
        mean_row = coding.untransform(self._tables, self.basis.layout, mean.reshape(1, -1))[0]
        return mean_row, variances.reshape(-1)


def fit_codec(
    moments: Moments,
    pilot: Iterable[Shaped[np.ndarray, "n ..."]],
    *,
    grid: tuple[int, int] | None,
    num_bytes: int,
    scaled: bool | None = None,
) -> RowCodec:
    """Fit a codec of at most ``num_bytes`` per row: RowSpectrum.of(...).codec(...)."""
    return RowSpectrum.of(moments, pilot, grid=grid).codec(num_bytes, scaled=scaled)


@dataclass(frozen=True, eq=False)
class RowSpectrum:
    """What a pilot says of rows: enough for a codec of any budget."""

    basis: Basis
    mean_row: Float[np.ndarray, "t c"]
    """The pilot's mean row, drawn to the channels' means."""
    variances: Float[np.ndarray, " d"]
    """Of the coefficients about it, in squared units."""
    trial_rows: Shaped[np.ndarray, "n ..."]
    """The first block of the pilot."""

    @classmethod
    def of(
        cls,
        moments: Moments,
        pilot: Iterable[Shaped[np.ndarray, "n ..."]],
        *,
        grid: tuple[int, int] | None,
    ) -> RowSpectrum:
        """From blocks of rows (n, t, c) or (n, c), at least one row.

        ``grid`` is (h, w) with h w = t; None for tokens in no order and for a summary, which are
        then not transformed along t.

        Raises DegenerateMoments when the features do not vary or are fewer than two vectors,
        UsageError for shapes that do not fit and for rows that are not finite.
        """
        check_spread(moments)
        blocks = iter(pilot)
        first = next(blocks, None)
        if first is None or len(first) == 0:
            raise UsageError("The pilot has no rows. Give one at least.")
        sums = _Sums(Basis.of(moments, first.shape[1:], grid))
        sums.add(first)
        for block in blocks:
            sums.add(block)
        eigenvalues = np.maximum(moments.spectrum[0][::-1], 0.0)
        known = moments.n / (moments.n + PRIOR_ROWS)
        mean_row, variances = sums.shrunk(known * eigenvalues + (1 - known) * np.mean(eigenvalues))
        return cls(sums.basis, mean_row, variances, first)

    def codec(self, num_bytes: int, *, scaled: bool | None = None) -> RowCodec:
        """A codec of at most ``num_bytes`` per row.

        ``scaled``: a scale per row and band, the default. Rows of at most SMALL_ROW bytes go
        without where the first block of the pilot, of TRIAL_ROWS rows or more, loses less so.

        Raises UsageError for bytes that nothing can be coded in.
        """
        choices = [True, False] if scaled is None else [scaled]
        if scaled is None and num_bytes > SMALL_ROW:
            choices = [True]
        codecs = [self._codec(num_bytes, scaled=choice) for choice in choices]
        fitted = [codec for codec in codecs if codec is not None]
        if not fitted:
            raise UsageError(f"num_bytes={num_bytes}: nothing can be coded in so few bytes.")
        if len(fitted) == 1 or len(self.trial_rows) < TRIAL_ROWS:
            return fitted[0]
        return min(fitted, key=lambda codec: codec.lost_share(self.trial_rows))

    def _codec(self, num_bytes: int, *, scaled: bool) -> RowCodec | None:
        """None where nothing can be coded."""
        order, bands = allocate(self.variances, num_bytes, scaled=scaled)
        if not bands:
            return None
        basis = self.basis
        spread = np.where(order >= 0, np.sqrt(self.variances[order]), 0.0)
        return RowCodec(
            row_shape=basis.row_shape,
            unit_exponent=basis.unit_exponent,
            bands=bands,
            scaled=scaled,
            mean_row=self.mean_row,
            axes=basis.axes.astype(np.float32),
            down=basis.down.astype(np.float32),
            across=basis.across.astype(np.float32),
            order=order.astype(np.int32),
            spread=spread.astype(np.float32),
            codebooks={band.bits: codebook(band.bits) for band in bands},
            distortions={band.bits: distortion(band.bits) for band in bands},
        )

    def limit(self, bits: float) -> float:
        """Share of the variance that any code of ``bits`` per channel and token leaves of normal
        rows of this spectrum, at least."""
        return gaussian_limit(self.variances, bits * self.variances.size)
