"""A fitted codec: rows of one teacher's features to bytes of a fixed number, and back.

A row x (t, c) of t = h w tokens is coded like a picture in JPEG:

1. the mean row is taken off, channels become principal axes, the grid becomes frequencies (an
   orthonormal DCT-II along h and w): d = t c coefficients, few of which vary much;
2. each coefficient has a number of bits, by reverse water-filling on its variance; those of equal
   bits form a band, those without bits are not stored;
3. in a band, coefficients over their standard deviations are rotated by Hadamard blocks, divided by
   their root mean square in this row (a float16), and go, some at once, to the nearest of 2^b
   points each.

All steps but the last are orthogonal: a squared error of the codes is that of the features. The
bytes are described in docs/codes.md, with a decoder of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Int, Shaped, UInt8

from phistill.errors import UsageError

from ..format import tensor_file
from . import coding
from .bands import Band, row_bytes
from .levels import MAX_BITS, codebook
from .packing import lookup

FORMAT: Literal[1] = 1
"""Version of the stored form and of the bytes of a row."""

_CHUNK_VALUES = 2**19
"""Coefficients that are worked on at once: 4 MiB of float64 for each step."""

_MOST_EXPONENT = 200
"""Of a unit, to either side: sums of units are finite."""

_ARRAYS = ("mean_row", "axes", "down", "across", "order", "spread")
_NDIM = {"order": 1, "spread": 1}
"""2 of all others."""


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored beside the arrays."""

    format: Literal[1]
    row_shape: tuple[int, ...]
    unit_exponent: int
    bands: list[tuple[int, int]]
    """Bits and coefficients of each."""
    distortions: dict[int, float]
    scaled: bool


class Encoded(NamedTuple):
    """Codes of rows, and their squared error."""

    codes: UInt8[np.ndarray, "n bytes"]
    lost: float
    """|x - decoded|^2, summed over rows."""
    total: float
    """|x - mean over tokens of the mean row|^2, summed over rows."""

    @property
    def lost_share(self) -> float:
        """Of the variance; 0 where nothing varies."""
        return self.lost / self.total if self.total > 0 else 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class RowCodec:
    """Tables and layout of one array's codes. All arrays are part of the format."""

    row_shape: tuple[int, ...]
    """(t, c) of tokens, (c,) of a summary."""
    unit_exponent: int
    """Coefficients are whole numbers of 2^unit_exponent."""
    bands: tuple[Band, ...]
    scaled: bool
    """Whether every row has a float16 scale for each band."""
    mean_row: Float32[np.ndarray, "t c"]
    axes: Float32[np.ndarray, "c c"]
    """Principal axes in columns, whole multiples of 2^-20, as are the next two."""
    down: Float32[np.ndarray, "h h"]
    across: Float32[np.ndarray, "w w"]
    order: Int[np.ndarray, " m"]
    """Number (frequency down, frequency across, axis) of the coefficient stored at each place; -1
    where there is none."""
    spread: Float32[np.ndarray, " m"]
    """Standard deviation of each in units; 0 where there is none."""
    codebooks: Mapping[int, Int[np.ndarray, "p k"]]
    """Points (2^(b k), k) of each b in use, whole numbers of 2^-15."""
    distortions: Mapping[int, float]
    """Mean squared error that the points of each b in use leave of a standard normal."""

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array, ndim = getattr(self, name), _NDIM.get(name, 2)
            dtype = np.int32 if name == "order" else np.float32
            if (
                array.dtype != dtype
                or array.ndim != ndim
                or array.size == 0
                or not np.isfinite(array).all()
            ):
                raise UsageError(
                    f"{name} of this codec is {array.dtype} {array.shape}; wanted are finite "
                    f"{np.dtype(dtype)} of {ndim} dimensions, and some."
                )
        t, c = self.mean_row.shape
        h, w = self.grid
        m = sum(band.size for band in self.bands)
        checks = {
            "unit_exponent": abs(self.unit_exponent) <= _MOST_EXPONENT,
            "row_shape": self.row_shape == (t, c) or (t == 1 and self.row_shape == (c,)),
            "axes": self.axes.shape == (c, c),
            "turns": all(np.abs(turn).max() <= 1 for turn in (self.axes, self.down, self.across)),
            "grid": h * w == t and self.down.shape == (h, h) and self.across.shape == (w, w),
            "bands": m > 0 and all(b.size > 0 and b.size % 8 == 0 for b in self.bands),
            "order": self.order.shape == (m,)
            and -1 <= self.order.min() <= self.order.max() < t * c,
            "spread": self.spread.shape == (m,),
            "codebooks": all(
                1 <= b.bits <= MAX_BITS
                and self.codebooks[b.bits].shape == codebook(b.bits).shape
                and self.codebooks[b.bits].dtype == np.int32
                and np.abs(self.codebooks[b.bits].astype(np.int64)).max() < coding.LARGEST_POINT
                for b in self.bands
            ),
            "distortions": all(0 <= self.distortions.get(b.bits, -1) < 1 for b in self.bands),
        }
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise UsageError(f"{' and '.join(wrong)} of this codec cannot be right.")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens."""
        return len(self.down), len(self.across)

    @property
    def num_bytes(self) -> int:
        """Bytes of a row, exactly."""
        return row_bytes(self.bands, scaled=self.scaled)

    @property
    def num_coefficients(self) -> int:
        """d = t c, stored or not."""
        return self.mean_row.size

    @property
    def bits(self) -> float:
        """Bits per channel and token, everything that a row stores counted."""
        return 8 * self.num_bytes / self.num_coefficients

    @property
    def layout(self) -> coding.Layout:
        return coding.Layout(self.grid, 2.0**self.unit_exponent, self.bands, self.scaled)

    @cached_property
    def tables(self) -> coding.Tables:
        """The arrays as the arithmetic takes them, for NumPy."""
        spread = self.spread.astype(np.float64)
        m, stored = len(self.order), self.order >= 0
        place = np.full(self.num_coefficients, m)
        place[self.order[stored]] = np.flatnonzero(stored)
        gain = np.zeros(m)
        steps = [np.full(band.size, coding.fine(band.bits)) for band in self.bands]
        np.divide(np.concatenate(steps), spread, out=gain, where=spread > 0)
        return coding.Tables(
            mean_row=self.mean_row.astype(np.float64),
            axes=self.axes.astype(np.float64),
            down=self.down.astype(np.float64),
            across=self.across.astype(np.float64),
            order=np.maximum(self.order, 0).astype(np.int64),
            place=place,
            spread=spread,
            gain=gain,
            searches={bits: coding.search_table(book) for bits, book in self.codebooks.items()},
            lookups={
                bits: lookup(book.astype(np.float64)) for bits, book in self.codebooks.items()
            },
            blocks={size: coding.hadamard(size) for size in coding.block_sizes(self.bands)},
        )

    @cached_property
    def unbiased_tables(self) -> coding.Tables:
        """The same for decoding without bias: E[point | x] = (1 - distortion) x of a normal x,
        because points are the means of their cells."""
        further = {
            bits: np.rint(points / (1 - self.distortions[bits]))
            for bits, points in self.tables.lookups.items()
        }
        return self.tables._replace(lookups=further)

    def encode(self, rows: Shaped[np.ndarray, "n ..."]) -> UInt8[np.ndarray, "n bytes"]:
        """Codes of rows of row_shape, of any float type.

        Raises UsageError for another shape, and for NaN or infinity, naming the row.
        """
        return self._encoded(rows, measured=False).codes

    def measured(self, rows: Shaped[np.ndarray, "n ..."]) -> Encoded:
        """Codes of rows, and what they lose. Errors as encode.

        Squares are of the coefficients, which decoding turns and does not stretch.
        """
        return self._encoded(rows, measured=True)

    def _encoded(self, rows: Shaped[np.ndarray, "n ..."], *, measured: bool) -> Encoded:
        check_rows(rows.shape, self.row_shape)
        codes = np.empty((len(rows), self.num_bytes), dtype=np.uint8)
        lost = total = 0.0
        for part in self._chunks(len(rows)):
            with np.errstate(invalid="ignore", over="ignore"):
                y = coding.transform(self.tables, self.layout, self._tokens(rows[part]))
                y = y.reshape(len(y), -1)
                finite = np.isfinite(y.sum(axis=1))
            if not finite.all():
                raise UsageError(not_finite_text(part.start + int(np.argmin(finite))))
            codes[part] = coding.encode(self.tables, self.layout, y)
            if measured:
                total += float(np.sum(np.square(y + self._mean_coefficients)))
                y -= coding.decode(self.tables, self.layout, codes[part])
                lost += float(np.sum(np.square(y, out=y)))
        square = self.layout.unit**2
        return Encoded(codes, lost * square, total * square)

    @cached_property
    def _mean_coefficients(self) -> Float[np.ndarray, " d"]:
        """Of the mean row about its mean over tokens, in units."""
        apart = self.mean_row - self.mean_row.mean(axis=0, dtype=np.float64)
        tables = self.tables._replace(mean_row=np.zeros_like(self.tables.mean_row))
        return coding.transform(tables, self.layout, apart[None]).reshape(-1)

    def decode(
        self, codes: UInt8[np.ndarray, "n bytes"], *, unbiased: bool = False
    ) -> Float32[np.ndarray, "n ..."]:
        """Rows of row_shape, float32, the same bits wherever they are decoded.

        By default with the least squared error, which draws coefficients of few bits towards their
        mean: of a normal x, E[decoded | x] = a x and a < 1. ``unbiased`` decodes to 1 / a as far,
        which is noisier and right on average: what is regressed on it comes out as on the features
        (Bussgang 1952: decoded - a x is uncorrelated with all that is jointly normal with x).

        Raises UsageError for another shape or type.
        """
        check_codes(codes.shape, codes.dtype == np.uint8, self.num_bytes)
        rows = np.empty((len(codes), *self.row_shape), dtype=np.float32)
        tables = self.unbiased_tables if unbiased else self.tables
        for part in self._chunks(len(codes)):
            y = coding.decode(tables, self.layout, np.ascontiguousarray(codes[part]))
            rows[part] = coding.untransform(tables, self.layout, y).reshape(rows[part].shape)
        return rows

    def lost_share(self, rows: Shaped[np.ndarray, "n ..."]) -> float:
        """What codes of these rows lose; see Encoded.lost_share."""
        return self.measured(rows).lost_share

    def _chunks(self, n: int) -> list[slice]:
        step = max(1, _CHUNK_VALUES // self.num_coefficients)
        return [slice(start, min(n, start + step)) for start in range(0, n, step)]

    def _tokens(self, rows: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n t c"]:
        return rows.reshape(len(rows), *self.mean_row.shape)

    def to_bytes(self) -> bytes:
        """One safetensors file with a digest."""
        facts = _Facts(
            format=FORMAT,
            row_shape=self.row_shape,
            unit_exponent=self.unit_exponent,
            bands=[(band.bits, band.size) for band in self.bands],
            distortions=dict(self.distortions),
            scaled=self.scaled,
        )
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"codebook{bits}": book for bits, book in self.codebooks.items()}
        return tensor_file.encode(arrays, msgspec.to_builtins(facts, str_keys=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> RowCodec:
        """Read to_bytes() back; UsageError when the bytes are something else or were changed."""
        try:
            arrays, metadata = tensor_file.decode(data)
            facts = msgspec.convert(metadata, _Facts, str_keys=True)
            bands = tuple(Band(bits, size) for bits, size in facts.bands)
            codebooks = {band.bits: arrays[f"codebook{band.bits}"] for band in bands}
            tables = {name: arrays[name] for name in _ARRAYS}
        except (ValueError, KeyError, msgspec.ValidationError) as error:
            raise UsageError(
                f"This is not a codec of format {FORMAT}: "
                f"{f'{error} is missing' if isinstance(error, KeyError) else error}."
            ) from error
        return cls(
            row_shape=facts.row_shape,
            unit_exponent=facts.unit_exponent,
            bands=bands,
            scaled=facts.scaled,
            codebooks=codebooks,
            distortions=facts.distortions,
            **tables,
        )


def bytes_for(bits: float, row_shape: tuple[int, ...]) -> int:
    """Bytes of a row at ``bits`` per channel and token, rounded down, at least one."""
    return max(1, int(bits * int(np.prod(row_shape)) / 8))


def check_rows(shape: tuple[int, ...], row_shape: tuple[int, ...]) -> None:
    """Refuse rows of another shape."""
    if tuple(shape[1:]) != row_shape:
        raise UsageError(f"Rows of shape {tuple(shape[1:])}; this codec takes {row_shape}.")


def check_codes(shape: tuple[int, ...], bytes_type: bool, num_bytes: int) -> None:
    """Refuse codes of another type or length."""
    if not bytes_type or tuple(shape[1:]) != (num_bytes,):
        raise UsageError(f"Codes of shape {tuple(shape)} must be uint8 (n, {num_bytes}).")


def not_finite_text(row: int) -> str:
    return f"Row {row} holds NaN or infinity. Only finite features can be coded."
