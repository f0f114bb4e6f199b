"""How the stored coefficients of a row are grouped, and what a group takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

GROUP = 8
"""Coefficients of a group: one bit for each is one byte."""

SCALE_BYTES = 2
"""A float16 for each band of a row."""


class Band(NamedTuple):
    """Coefficients that are stored with the same bits."""

    bits: int
    size: int
    """Coefficients, a multiple of GROUP."""

    @property
    def num_bytes(self) -> int:
        return self.bits * self.size // GROUP


def row_bytes(bands: Sequence[Band], *, scaled: bool) -> int:
    """Bytes of a row of codes."""
    return sum(band.num_bytes for band in bands) + SCALE_BYTES * scaled * len(bands)
