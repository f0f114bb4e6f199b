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
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int, Shaped

from .bands import GROUP, SCALE_BYTES, Band
from .levels import LEVEL_STEP
from .packing import numbers, pack

BLOCK = 64
"""Largest block of a rotation: sums of 64 values are normal enough, and cost little."""

FINE, FINEST = 2.0**10, 2.0**14
"""Steps per standard deviation that coefficients are rounded to before they are rotated: 71 dB, and
95 in bands of more than FINE_BITS."""

FINE_BITS = 8

NEAR = 2.0**7
"""Steps per standard deviation in which the nearest point is looked for."""

LARGEST_POINT = 8 / LEVEL_STEP
"""No coordinate of a point is as large, in LEVEL_STEP."""

_FARTHEST = 8 * NEAR
_HIGH = 2.0**10
_SCORES = 2**20
"""Scores that are compared at once: 4 MiB."""

PLANE = 2**9
"""Sides of a table of the nearest points of two coefficients, which holds those up to
PLANE / 2 steps: 4 standard deviations, further than any point."""

PLANE_NEAR = 2.0**6
"""Steps of that table per standard deviation: at 4 bits 0.012 dB worse than a search."""

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
    """(m,) `fine` / spread; 0 where spread is 0."""
    searches: dict[int, Any]
    """What `_nearest` needs of each b: `search_table`."""
    lookups: dict[int, Any]
    """Values by the numbers of points, in LEVEL_STEP, of each b (`packing.lookup`)."""
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


def fine(bits: int) -> float:
    """Steps per standard deviation in a band of so many bits."""
    return FINE if bits <= FINE_BITS else FINEST


def pieces(size: int) -> Iterator[tuple[int, int, int]]:
    """(start, number, B) of the blocks of a band: as many of BLOCK as fit, then the binary digits
    of what is left.

    >>> list(pieces(600))
    [(0, 9, 64), (576, 1, 16), (592, 1, 8)]
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
            half = _scale(xp, inside, 1 / fine(band.bits))
            scales.append(half)
            scale = xp.astype(half, xp.float64)
        turned = _rotated(xp, inside, tables.blocks, 1 / fine(band.bits), _over, scale)
        planes.append(pack(_nearest(xp, turned, tables.searches[band.bits]), band.bits))
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


def _scale(xp: Any, u: Any, step: float) -> Any:
    """The root mean square of whole numbers of ``step``, (n, 1), to float32 and then float16."""
    mean = xp.sum(u * u, axis=1, keepdims=True) / u.shape[1]
    wide = xp.clip(xp.sqrt(mean) * step, max=LARGEST_SCALE)
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


def search_table(codebook: Int[np.ndarray, "p k"]) -> Shaped[np.ndarray, "*table"]:
    """What finds the nearest of some points, whole numbers of LEVEL_STEP.

    Of levels (k = 1): the middles (p - 1,) between them, float64. Of points of two coefficients:
    the number of the nearest to each place of a plane, (PLANE^2,) uint8. Of more: `score_table`.
    """
    if codebook.shape[1] == 1:
        levels = codebook[:, 0].astype(np.float64)
        return (levels[1:] + levels[:-1]) * (LEVEL_STEP / 2)
    if codebook.shape[1] == 2:
        return _plane(codebook.tobytes(), codebook.dtype.str)
    return score_table(codebook)


def score_table(codebook: Int[np.ndarray, "p k"]) -> Float[np.ndarray, "rows p"]:
    """(k + 2, p) float32, whose product with (r, 2^10, 1) is 2 r.s - s.s for r and s in steps of
    1 / NEAR, largest for the nearest point.

    All are whole numbers of at most 11 bits and sums stay below 2^24: exact in float32, and in the
    10 bits that TF32 keeps.
    """
    s = np.rint(codebook * (LEVEL_STEP * NEAR))
    square = np.sum(np.square(s), axis=1)
    high = square // _HIGH
    columns = [2 * s, -high[:, None], -(square - _HIGH * high)[:, None]]
    return np.concatenate(columns, axis=1).T.astype(np.float32)


@lru_cache(maxsize=8)
def _plane(codebook: bytes, dtype: str) -> Shaped[np.ndarray, " places"]:
    """Of points (p, 2), given as bytes to be remembered."""
    points = np.frombuffer(codebook, dtype).reshape(-1, 2)
    steps = np.arange(-PLANE // 2, PLANE // 2) * (1 / PLANE_NEAR)
    places = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)
    return _best(np, places.reshape(-1, 2), score_table(points))


def _nearest(xp: Any, values: Any, table: Any) -> Any:
    """Numbers of the nearest points, (n, m / k), of values (n, m): uint8, int16 of over 256."""
    if table.ndim == 2:
        n, k = values.shape[0], table.shape[0] - 2
        return xp.reshape(_best(xp, xp.reshape(values, (-1, k)), table), (n, -1))
    if table.dtype != xp.uint8:
        number = xp.uint8 if table.shape[0] < 2**8 else xp.int16
        return xp.astype(xp.searchsorted(table, values), number)
    half = PLANE // 2
    r = xp.clip(xp.round(values * PLANE_NEAR), min=-half, max=half - 1)
    place = xp.astype(r[:, ::2] * PLANE + r[:, 1::2] + (half * PLANE + half), xp.int64)
    return xp.reshape(xp.take(table, xp.reshape(place, (-1,))), place.shape)


def _best(xp: Any, values: Any, table: Any) -> Any:
    """Numbers of the points with the largest scores, uint8 (v,), of values (v, k)."""
    r = xp.clip(xp.round(values * NEAR), min=-_FARTHEST, max=_FARTHEST)
    r = xp.astype(r, xp.float32)
    ones = xp.ones_like(r[:, :1])
    r = xp.concat([r, ones * _HIGH, ones], axis=1)
    step = _SCORES // table.shape[1]
    found = [
        xp.astype(xp.argmax(r[start : start + step] @ table, axis=1), xp.uint8)
        for start in range(0, r.shape[0], step)
    ]
    return xp.concat(found)


def hadamard(size: int) -> Float[np.ndarray, "B B"]:
    """(-1)^(ones of i AND j), Sylvester's, for a power of two."""
    index = np.arange(size)
    return 1.0 - 2.0 * (np.bitwise_count(index[:, None] & index) & 1)


def block_sizes(bands: Sequence[Band]) -> list[int]:
    """Every B that the bands need."""
    return sorted({block for band in bands for _, _, block in pieces(band.size)})
