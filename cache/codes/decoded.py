"""Rows of an array that is stored as codes, given as features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reader import ArrayReader
from .codec import RowCodec


class DecodedReader:
    """Decoded rows, float32; used like the ArrayReader of an array of floats.

    ``unbiased`` as RowCodec.decode has it.

    ``codes`` reads the codes themselves, uint8 (n, codec.num_bytes).
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(
        self, codes: ArrayReader, kind: str, codec: RowCodec, *, unbiased: bool = False
    ) -> None:
        self.owner, self.kind = codes.owner, kind
        self.codes, self.codec, self.unbiased = codes, codec, unbiased
        self.row_shape = codec.row_shape
        self.row_bytes = math.prod(codec.row_shape) * self.dtype.itemsize

    def read(self, rows: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The decoded values (n, *row_shape) of ``rows`` (n,); errors as ArrayReader.read."""
        if out is not None and (
            out.shape != (len(rows), *self.row_shape) or out.dtype != self.dtype
        ):
            raise ValueError(
                f"out is {out.dtype} {out.shape}, must be {self.dtype} "
                f"{(len(rows), *self.row_shape)}."
            )
        values = self.codec.decode(self.codes.read(rows), unbiased=self.unbiased)
        if out is None:
            return values
        out[...] = values
        return out

    def refresh(self) -> None:
        """See the shards that were committed since."""
        self.codes.refresh()

    def prefetch(self, block: range) -> None:
        """Bring rows nearer; never an error."""
        self.codes.prefetch(block)
