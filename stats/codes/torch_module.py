"""A codec for torch: the exact codec on a device, and decoding for training.

n rows, t = h w tokens, c width, d = t c coefficients, m of them stored, B block of a rotation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from phistill.cache.codes import coding
from phistill.cache.codes.bands import SCALE_BYTES
from phistill.cache.codes.codec import RowCodec, check_codes, check_rows, not_finite_text
from phistill.cache.codes.levels import LEVEL_STEP
from phistill.cache.codes.packing import numbers
from phistill.compute.precision import without_autocast
from phistill.errors import UsageError

from ..normalizer.normalizer import Normalizer

_CPU_VALUES = 2**20
"""Coefficients that a CPU decodes at once: 4 MiB for each step."""


class CodecModule(nn.Module):
    """Encodes and decodes as `RowCodec` does, to the same bits, where its buffers are.

    ``forward`` decodes in float32 and applies a normalizer on the way, which costs no more than
    decoding alone. It rounds nothing to units, so that it differs from ``decode`` by about one.
    It has no parameters, and none of its buffers is saved with a model.
    """

    turn: Tensor
    """(c, c), axes and normalizer."""
    shift: Tensor
    """(c,), what is added at the end; 0 where there is a normalizer."""
    down: Tensor
    across: Tensor
    base: Tensor
    """(d,), coefficients of the mean row about the normalizer's mean."""
    spread: Tensor
    """(d,), standard deviations; 0 for coefficients that are not stored."""
    place: Tensor
    """(d,), where `_stored` has each; any place for those."""

    def __init__(self, codec: RowCodec, normalizer: Normalizer | None = None) -> None:
        super().__init__()
        self.codec = codec
        self._layout = codec.layout
        exact = codec.tables
        self._exact = exact.map(torch.from_numpy)
        """Moved when it is used: float64, which not every device has."""
        width = exact.axes.shape[0]
        mean = exact.mean_row.mean(axis=0) if normalizer is None else normalizer.mean
        affine = np.eye(width) if normalizer is None else normalizer.forward
        grid = (*self._layout.grid, width)
        base = exact.down @ (exact.mean_row - mean @ np.eye(width)).reshape(grid[0], -1)
        base = exact.across @ base.reshape(grid) @ exact.axes
        fast = {
            "turn": exact.axes.T @ affine.T,
            "shift": mean if normalizer is None else np.zeros(width),
            "down": exact.down.T,
            "across": exact.across.T,
            "base": base.reshape(-1),
            "spread": np.append(exact.spread, 0.0)[exact.place] * self._layout.unit * LEVEL_STEP,
        }
        fast |= {f"lookup{bits}": table for bits, table in exact.lookups.items()}
        fast |= {f"block{size}": table / math.sqrt(size) for size, table in exact.blocks.items()}
        for name, table in fast.items():
            self.register_buffer(
                name, torch.tensor(np.array(table), dtype=torch.float32), persistent=False
            )
        self._has_shift = normalizer is None
        turned = np.append(self._turned_order(), 0)[exact.place]
        self.register_buffer("place", torch.from_numpy(turned), persistent=False)

    def _turned_order(self) -> Int[np.ndarray, " m"]:
        """Where `_stored`, which takes blocks of a size together, has each coefficient."""
        places = np.arange(len(self.codec.order))
        taken = [places[piece] for _, pieces in self._blocks() for piece in pieces]
        where = np.empty_like(places)
        where[np.concatenate(taken)] = places
        return where

    def _blocks(self) -> list[tuple[int, list[slice]]]:
        """Sizes of blocks, and the stored places that are rotated by each."""
        found: dict[int, list[slice]] = {}
        begin = 0
        for band in self._layout.bands:
            for first, number, block in coding.pieces(band.size):
                start = begin + first
                found.setdefault(block, []).append(slice(start, start + number * block))
            begin += band.size
        return sorted(found.items())

    @torch.no_grad()
    def encode(self, rows: Shaped[Tensor, "n ..."]) -> UInt8[Tensor, "n bytes"]:
        """Codes of rows of row_shape, on their device; errors as RowCodec.encode."""
        with without_autocast(rows.device.type):
            return self._encode(rows)

    def _encode(self, rows: Shaped[Tensor, "n ..."]) -> UInt8[Tensor, "n bytes"]:
        check_rows(tuple(rows.shape), self.codec.row_shape)
        tables = self._tables_on(rows.device)
        tokens = rows.reshape(len(rows), *self.codec.mean_row.shape)
        y = coding.transform(tables, self._layout, tokens).reshape(len(rows), -1)
        finite = y.sum(dim=1).isfinite()
        if not finite.all():
            raise UsageError(not_finite_text(int((~finite).int().argmax())))
        return coding.encode(tables, self._layout, y)

    @torch.no_grad()
    def decode(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n ..."]:
        """Rows of row_shape, float32: the bits of RowCodec.decode."""
        self._check(codes)
        tables = self._tables_on(codes.device)
        y = coding.decode(tables, self._layout, codes)
        rows = coding.untransform(tables, self._layout, y)
        return rows.reshape(len(codes), *self.codec.row_shape)

    @torch.no_grad()
    def forward(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n ..."]:
        """Decoded and normalised rows, float32, even under autocast."""
        self._check(codes)
        with without_autocast(codes.device.type):
            return self._normalised(codes)

    def _normalised(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n ..."]:
        rows = codes.new_empty((len(codes), *self.codec.mean_row.shape), dtype=torch.float32)
        step = len(codes)
        if codes.device.type == "cpu":
            step = max(1, _CPU_VALUES // self.codec.num_coefficients)
        for start in range(0, len(codes), step):
            some = slice(start, start + step)
            torch.matmul(self._tokens(codes[some]), self.turn, out=rows[some])
        if self._has_shift:
            rows.add_(self.shift)
        return rows.reshape(len(codes), *self.codec.row_shape)

    def _tokens(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n t c"]:
        """Principal axes of the tokens."""
        (h, w), n = self._layout.grid, len(codes)
        y = torch.addcmul(self.base, self._stored(codes).index_select(1, self.place), self.spread)
        if w > 1:
            y = self.across @ y.reshape(n, h, w, -1)
        if h > 1:
            y = self.down @ y.reshape(n, h, -1)
        return y.reshape(n, h * w, -1)

    def _stored(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n m"]:
        """Stored coefficients over their standard deviations, in the order of `_blocks`."""
        n, start, parts = len(codes), 0, []
        if self._layout.scaled:
            start = SCALE_BYTES * len(self._layout.bands)
            scales = codes[:, :start].reshape(-1).view(torch.float16).reshape(n, -1).float()
        for i, band in enumerate(self._layout.bands):
            which = numbers(codes[:, start : start + band.num_bytes], band.bits)
            start += band.num_bytes
            values = F.embedding(which, self.get_buffer(f"lookup{band.bits}")).reshape(n, -1)
            if self._layout.scaled:
                values *= scales[:, i : i + 1]
            parts.append(values)
        values = torch.cat(parts, dim=1)
        parts = []
        for block, pieces in self._blocks():
            part = torch.cat([values[:, piece] for piece in pieces], dim=1).reshape(-1, block)
            parts.append((part @ self.get_buffer(f"block{block}")).reshape(n, -1))
        return torch.cat(parts, dim=1)

    def _tables_on(self, device: torch.device) -> coding.Tables:
        if self._exact.axes.device != device:
            self._exact = self._exact.map(lambda table: table.to(device))
        return self._exact

    def _check(self, codes: Tensor) -> None:
        check_codes(tuple(codes.shape), codes.dtype == torch.uint8, self.codec.num_bytes)
