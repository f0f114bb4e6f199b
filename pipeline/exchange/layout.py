"""Which axis of imported patches is which, and bits of bfloat16: arrays as (n, T, C) or
(n, h, w, C), in a dtype that NumPy has.

n rows, T tokens on a grid (h, w), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError, did_you_mean

from .feature_files import FeatureFiles
from .fields import PIXELS, Values

LAYOUTS = {"ntc": "(n, T, C)", "nct": "(n, C, T)", "nhwc": "(n, h, w, C)", "nchw": "(n, C, h, w)"}
CHANNELS_FIRST = ("nct", "nchw")
MAX_ASPECT = 2
"""A map with longer rows than this, or columns, is not taken for one without being told."""

BITS = (np.dtype(np.uint16), np.dtype("V2"))
"""What NumPy makes of bfloat16, which it does not know."""

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ChannelsLast:
    """An array whose channels come first in each row, read with them last."""

    values: Values

    @property
    def row_shape(self) -> tuple[int, ...]:
        channels, *rest = self.values.row_shape
        return (*rest, channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        return np.moveaxis(self.values.read(positions), 1, -1)


@dataclass(frozen=True, eq=False)
class FromBits:
    """An array of bfloat16's 16 bits, read as float32, which holds every one of them."""

    values: Values

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.values.row_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        bits = self.values.read(positions).view(np.uint16)
        return (bits.astype(np.uint32) << 16).view(np.float32)


def arranged(
    features: FeatureFiles,
    layouts: Mapping[str, str],
    grids: Mapping[str, Grid],
    *,
    bfloat16: bool = False,
) -> FeatureFiles:
    """The features with channels last, and bits of bfloat16 as float32 where they are said to be.

    ``layouts`` names one of LAYOUTS by teacher, "" for all; ``grids`` gives (h, w). UsageError for
    patches that can be read in two ways when neither says which.
    """
    for name, layout in layouts.items():
        if layout not in LAYOUTS:
            raise UsageError(
                f"--layout {layout!r} is not known; choose one of {', '.join(LAYOUTS)}."
                f"{did_you_mean(layout, LAYOUTS)}"
            )
        if name and name not in features.teachers:
            raise UsageError(
                f"--layout names {name!r}; the features are of {', '.join(features.teachers)}."
            )
    arrays = dict(features.arrays)
    for field, values in arrays.items():
        if field == PIXELS:
            continue
        if bfloat16 and values.dtype in BITS:
            arrays[field] = values = FromBits(values)
        name, kind = field
        if kind == "patches" and len(values.row_shape) in (2, 3):
            stated = layouts.get(name) or layouts.get("")
            if stated is None and "grid" in features.facts.get("teachers", {}).get(name, {}):
                stated = "ntc" if len(values.row_shape) == 2 else "nhwc"  # an export of phistill
            layout = layout_of(values.row_shape, grids.get(name), stated, f"{name}.patches")
            if layout in CHANNELS_FIRST:
                arrays[field] = ChannelsLast(values)
    return replace(features, arrays=arrays)


def layout_of(shape: tuple[int, ...], grid: Grid | None, stated: str | None, array: str) -> str:
    """The layout of rows of ``shape``: the one stated, or the only one that makes sense.

    Without a word channels come last: first is always to be stated.
    """
    rank = len(shape)
    last, first = ("ntc", "nct") if rank == 2 else ("nhwc", "nchw")
    if stated is not None:
        if stated not in (last, first):
            raise UsageError(
                f"{array} has {rank + 1} axes with its rows, and --layout {stated} means "
                f"{LAYOUTS[stated]}; choose {last} or {first}."
            )
        return stated
    makes_sense = {
        last: _is_map(shape[:-1], grid),
        first: _is_map(shape[1:], grid),
    }
    remedy = f"Say which with --layout {last} or --layout {first}."
    if makes_sense[last] and makes_sense[first]:
        raise UsageError(
            f"{array} has rows of shape {shape}, which may be {LAYOUTS[last]} or "
            f"{LAYOUTS[first]}. {remedy}"
        )
    if makes_sense[first]:
        raise UsageError(
            f"{array} has rows of shape {shape}, which look like {LAYOUTS[first]}. If they are, "
            f"import them with --layout {first}; if not, with --layout {last}."
        )
    if not makes_sense[last] and rank == 3:
        raise UsageError(
            f"{array} has rows of shape {shape}, which look like no map"
            f"{f' on the grid {grid}' if grid else ''}. {remedy}"
        )
    return last


def _is_map(axes: tuple[int, ...], grid: Grid | None) -> bool:
    """Whether these axes, h and w or T, can be those of patches."""
    if len(axes) == 2:
        return axes == grid if grid else max(axes) <= MAX_ASPECT * min(axes)
    (num,) = axes
    return num == grid[0] * grid[1] if grid else num > 1 and math.isqrt(num) ** 2 == num
