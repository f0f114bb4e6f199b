"""The rows of one step that one process learns from, or a part of them.

b rows of this process, of which n have a target, S side in pixels, t tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from phistill.cache.codes import RowCodec

from .stream import Rows


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's share of a step, or a part of it."""

    step: int
    rows: Rows
    """(b,) global rows."""

    first: int
    """Position of ``rows[0]`` within the step's global batch."""

    pixels: UInt8[Tensor, "b S S 3"]
    values: Mapping[str, Tensor]
    """By target key: patches (n, t, c) float16 or summary (n, c) float32, as stored; n = b unless
    each row has one teacher."""

    teacher_of: NDArray[np.int64] | None
    """(b,) number of each row's only teacher; None when every teacher takes every row."""

    counts: Mapping[str, int]
    """By target key: rows of the whole global batch that have this target."""

    slots: Mapping[str, int]
    """By target key: the number of its teacher."""

    normalised: Mapping[str, bytes] = field(default_factory=dict)
    """By target key, the digest of the transform that its values have been through already, float32
    then."""

    codecs: Mapping[str, RowCodec] = field(default_factory=dict)
    """By target key, of those whose values are codes, uint8 (n, bytes), unless normalised."""

    shared: dict[Any, Any] | None = None
    """What students that take turns on this batch have computed from it and the next may use; None
    where there is one student."""

    def positions(self, key: str) -> NDArray[np.int64]:
        """Rows of this batch that have the target ``key``."""
        if self.teacher_of is None:
            return np.arange(len(self.rows))
        return np.flatnonzero(self.teacher_of == self.slots[key])

    def part(self, number: int, parts: int) -> Batch:
        """Part ``number`` of ``parts`` that are equal to one row."""
        low, high = share(len(self.rows), number, parts)
        values = {}
        for key, value in self.values.items():
            positions = self.positions(key)
            values[key] = value[np.searchsorted(positions, low) : np.searchsorted(positions, high)]
        return replace(
            self,
            rows=self.rows[low:high],
            first=self.first + low,
            pixels=self.pixels[low:high],
            values=values,
            teacher_of=None if self.teacher_of is None else self.teacher_of[low:high],
            shared=self.shared if parts == 1 else None,
        )


def share(size: int, number: int, parts: int) -> tuple[int, int]:
    """First and past-last of the rows of share ``number``, of ``parts`` equal to one row."""
    return size * number // parts, size * (number + 1) // parts
