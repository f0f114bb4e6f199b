"""Features in files that other tools read: npy arrays, or WebDataset tars of them.

FOLDER/NAME.KIND.npy      (n, T, C) or (n, h, w, C) patches, (n, D) summary, (n, G, C) registers
FOLDER/pixels.npy         (n, S, S, 3) uint8, where there are any
FOLDER/ids.parquet        a line per row: id, and view, label, split, sha256, ... where known
FOLDER/ids.txt            or only the ids, one per line
FOLDER/features.json      what the teachers are; written last by ``export_features``

In a tar, KEY.NAME.KIND.npy and KEY.pixels.npy are one row's values, and KEY.json its line of the
table; without it KEY is the id. npy files are read without pickle.

n rows, T tokens on a grid (h, w), G registers, C and D widths, S side of the pixels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phistill.cache.format import names

FACTS = "features.json"
TABLE, LIST = "ids.parquet", "ids.txt"
Field = tuple[str, str]
"""(teacher, kind), or (pixels, pixels)."""

PIXELS: Field = (names.PIXELS, names.PIXELS)


class Values(Protocol):
    """One array: its row shape and dtype, and chosen rows of it."""

    @property
    def row_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """(n, *row_shape) in the order of ``positions`` (n,)."""


def field_name(field: Field) -> str:
    """``NAME.KIND``, or ``pixels``."""
    return names.PIXELS if field == PIXELS else ".".join(field)


def field_of(stem: str) -> Field | None:
    """The field of ``NAME.KIND`` or ``pixels``; None for anything else."""
    if stem == names.PIXELS:
        return PIXELS
    name, _, kind = stem.rpartition(".")
    return (name, kind) if name and kind in names.KINDS else None
