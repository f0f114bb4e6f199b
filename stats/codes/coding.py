"""The arithmetic of codes, the same for NumPy and torch: rows to bytes and back, equal to the bit.

Every product of matrices is exact: its factors are whole numbers of a fixed step, small enough that
float64 holds every partial sum, whatever the order of the sums. Between products values are rounded
to whole numbers again; everything else is one rounding of IEEE 754 per element. So codes and
decoded values depend on the features and the tables alone, not on a library, a device, threads or
the size of a batch.

n rows, t = h w tokens on a grid, c width, d = t c coefficients, m of them stored, B block of a
rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from .allocation import GROUP, SCALE_BYTES, Band
from .levels import LEVEL_STEP
from .packing import numbers, pack

BLOCK = 64
"""Largest block of a rotation: sums of 256 values are normal enough, and cost little."""

FINE = 2.0**10
"""Steps per standard deviation that coefficients are rounded to before they are rotated: 71 dB."""

LARGEST_SCALE = 65504.0
"""Of a band, the largest float16."""


class Layout(NamedTuple):
    """What is not an array."""

    grid: tuple[int, int]
    unit: float
    """The step of coefficients, a power of two."""
    bands: tuple[Band, ...]
    scaled: bool
    """Whether a row has a scale for each band."""


class Tables(NamedTuple):
    """Arrays of NumPy, or of torch on one device; real numbers are float64."""

    mean_row: Any
    """(t, c), what is taken off."""
    axes: Any
    """(c, c), principal axes in columns."""
    down: Any
    """(h, h), grid rows to frequencies."""
    across: Any
    """(w, w), grid columns to frequencies."""
    order: Any
    """(m,) int64, the coefficient stored at each place."""
    place: Any
    """(d,) int64, the place of each coefficient; m for those that are not stored."""
    spread: Any
    """(m,) standard deviations in units; 0 where nothing is stored."""
    gain: Any
    """(m,) FINE / spread; 0 where spread is 0."""
    levels: dict[int, Any]
    """(2^b,) of each b, in LEVEL_STEP."""
    lookups: dict[int, Any]
    """Levels by the numbers of several codes, of each b (`packing.lookup`)."""
    blocks: dict[int, Any]
    """(B, B) of each B, entries +-1."""

    def map(self, change: Callable[[Any], Any]) -> Tables:
        """The same with every array changed."""
        return Tables(
            *(
                {key: change(array) for key, array in part.items()}
                if isinstance(part, dict)
                else change(part)
                for part in self
            )
        )


def pieces(size: int) -> Iterator[tuple[int, int, int]]:
    """(start, number, B) of the blocks of a band: as many of BLOCK as fit, then the binary digits
    of what is left.

    >>> list(pieces(600))
    [(0, 2, 256), (512, 1, 64), (576, 1, 16), (592, 1, 8)]
    """
    start, block = 0, BLOCK
    while block >= GROUP:
        number = (size - start) // block
        if number:
            yield start, number, block
        start += number * block
        block //= 2


def transform(tables: Tables, layout: Layout, rows: Any) -> Any:
    """Coefficients (n, h, w, c) of rows (n, t, c), whole numbers of units in float64."""
    xp = array_namespace(rows)
    (h, w), n = layout.grid, rows.shape[0]
    z = xp.round((xp.astype(rows, xp.float64) - tables.mean_row) * (1 / layout.unit))
    y = xp.reshape(xp.round(z @ tables.axes), (n, h, -1))
    if h > 1:
        y = xp.round(tables.down @ y)
    y = xp.reshape(y, (n, h, w, -1))
    return xp.round(tables.across @ y) if w > 1 else y


def untransform(tables: Tables, layout: Layout, y: Any) -> Any:
    """Rows (n, t, c), float32, of coefficients (n, d)."""
    xp = array_namespace(y)
    (h, w), n = layout.grid, y.shape[0]
    if w > 1:
        y = xp.round(tables.across.T @ xp.reshape(y, (n, h, w, -1)))
    if h > 1:
        y = xp.round(tables.down.T @ xp.reshape(y, (n, h, -1)))
    z = xp.round(xp.reshape(y, (n, h * w, -1)) @ tables.axes.T)
    return xp.astype(z * layout.unit + tables.mean_row, xp.float32)


def encode(tables: Tables, layout: Layout, y: Any) -> Any:
    """uint8 (n, bytes) of coefficients (n, d)."""
    xp = array_namespace(y)
    u = xp.round(xp.take(y, tables.order, axis=1) * tables.gain)
    scales, planes, start = [], [], 0
    for band in layout.bands:
        inside = u[:, start : start + band.size]
        start += band.size
        scale: Any = 1.0
        if layout.scaled:
            half = _scale(xp, inside)
            scales.append(half)
            scale = xp.astype(half, xp.float64)
        turned = _rotated(xp, inside, tables.blocks, 1 / FINE, _over, scale)
        planes.append(pack(_nearest(xp, turned, tables.levels[band.bits]), band.bits))
    if scales:
        planes.insert(0, xp.concat(scales, axis=1).view(xp.uint8))
    return xp.concat(planes, axis=1)


def decode(tables: Tables, layout: Layout, data: Any) -> Any:
    """Coefficients (n, d), whole numbers of units in float64, of uint8 (n, bytes)."""
    xp = array_namespace(data)
    n, start, parts = data.shape[0], 0, []
    if layout.scaled:
        start = SCALE_BYTES * len(layout.bands)
        scales = xp.astype(xp.reshape(data[:, :start], (-1,)).view(xp.float16), xp.float64)
        scales = xp.reshape(scales, (n, -1))
    for i, band in enumerate(layout.bands):
        which = xp.reshape(numbers(data[:, start : start + band.num_bytes], band.bits), (-1,))
        start += band.num_bytes
        values = xp.reshape(xp.take(tables.lookups[band.bits], which, axis=0), (n, band.size))
        scale = scales[:, i : i + 1] if layout.scaled else 1.0
        parts.append(_rotated(xp, values, tables.blocks, LEVEL_STEP, _times, scale))
    stored = xp.round(xp.concat(parts, axis=1) * tables.spread)
    nothing = xp.zeros((n, 1), dtype=xp.float64, device=stored.device)
    return xp.take(xp.concat([stored, nothing], axis=1), tables.place, axis=1)


def _scale(xp: Any, u: Any) -> Any:
    """The root mean square of whole numbers of 1 / FINE, (n, 1), to float32 and then float16."""
    mean = xp.sum(u * u, axis=1, keepdims=True) / u.shape[1]
    wide = xp.clip(xp.sqrt(mean) * (1 / FINE), max=LARGEST_SCALE)
    return xp.astype(xp.astype(wide, xp.float32), xp.float16)


def _times(xp: Any, factor: float, scale: Any) -> Any:
    return scale * factor


def _over(xp: Any, factor: float, scale: Any) -> Any:
    """factor / scale; 0 where the scale is 0, for a row that is 0 there."""
    if isinstance(scale, float):
        return factor / scale
    empty = scale == 0
    return xp.where(empty, xp.zeros_like(scale), factor / xp.where(empty, 1.0 + scale, scale))


def _rotated(
    xp: Any,
    x: Any,
    blocks: dict[int, Any],
    step: float,
    scaling: Callable[[Any, float, Any], Any],
    scale: Any,
) -> Any:
    """Whole numbers of ``step`` (n, m), each block times H, then scaled by step / sqrt(B)."""
    n, parts = x.shape[0], []
    for start, number, block in pieces(x.shape[1]):
        part = xp.reshape(x[:, start : start + number * block], (n * number, block))
        part = xp.reshape(part @ blocks[block], (n, number * block))
        parts.append(part * scaling(xp, step / math.sqrt(block), scale))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)


def _nearest(xp: Any, values: Any, levels: Any) -> Any:
    """Numbers of the nearest levels, uint8."""
    middles = (levels[1:] + levels[:-1]) * (LEVEL_STEP / 2)
    if levels.shape[0] > 8:
        return xp.astype(xp.searchsorted(middles, values), xp.uint8)
    code = xp.astype(values > middles[0], xp.uint8)
    for i in range(1, levels.shape[0] - 1):
        code = code + xp.astype(values > middles[i], xp.uint8)
    return code


def block_sizes(bands: Sequence[Band]) -> list[int]:
    """Every B that the bands need."""
    return sorted({block for band in bands for _, _, block in pieces(band.size)})
