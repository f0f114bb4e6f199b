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
from phistill.cache.codes.coding import BLOCK
from phistill.cache.codes.levels import LEVEL_STEP
from phistill.cache.codes.packing import at_once, numbers
from phistill.compute.precision import without_autocast
from phistill.errors import UsageError

from ..normalizer.normalizer import Normalizer

_CPU_VALUES = 2**20
"""Coefficients that a CPU decodes at once: 4 MiB for each step."""


class CodecModule(nn.Module):
    """Encodes and decodes as `RowCodec` does, to the same bits, where its buffers are.

    ``forward`` decodes in float32 and applies a normalizer on the way, which costs no more than
    decoding alone. It rounds nothing to units, so that it differs from ``decode`` by about one.
    ``unbiased`` decodes as ``RowCodec.decode(..., unbiased=True)`` does. It has no parameters, and
    none of its buffers is saved with a model.
    """

    turn: Tensor
    """(c, c), axes and normalizer."""
    shift: Tensor
    """(c,), what is added at the end; 0 where there is a normalizer."""
    down: Tensor
    across: Tensor
    spread: Tensor
    """(m,), standard deviations in the order of `_stored_order`."""
    base: Tensor
    """(m and those that are not stored,), coefficients of the mean row about the normalizer's."""
    place: Tensor
    """(d,) int32, where ``base`` has each."""
    rest_turn: Tensor
    """(r, r), rotates what is left of the bands after their whole blocks."""
    rest_band: Tensor
    """(r,), the band of each of those."""

    def __init__(
        self, codec: RowCodec, normalizer: Normalizer | None = None, *, unbiased: bool = False
    ) -> None:
        super().__init__()
        self.codec = codec
        self._layout = codec.layout
        exact = codec.unbiased_tables if unbiased else codec.tables
        self._exact = exact.map(torch.from_numpy)
        """Moved when it is used: float64, which not every device has."""
        width = exact.axes.shape[0]
        mean = exact.mean_row.mean(axis=0) if normalizer is None else normalizer.mean
        affine = np.eye(width) if normalizer is None else normalizer.forward
        grid = (*self._layout.grid, width)
        base = exact.down @ (exact.mean_row - mean @ np.eye(width)).reshape(grid[0], -1)
        base = (exact.across @ base.reshape(grid) @ exact.axes).reshape(-1)
        self._wholes = [band.size // BLOCK * BLOCK for band in self._layout.bands]
        """Coefficients of the whole blocks of each band."""
        stored = self._stored_order()
        number = codec.order[stored]
        kept = np.append(number, np.setdiff1d(np.arange(base.size), number))
        place = np.zeros(base.size, np.int32)
        place[kept[kept >= 0]] = np.flatnonzero(kept >= 0)
        rest_turn, rest_band = self._rest()
        fast = {
            "turn": exact.axes.T @ affine.T,
            "shift": mean if normalizer is None else np.zeros(width),
            "down": exact.down.T,
            "across": exact.across.T,
            "spread": exact.spread[stored] * self._layout.unit * LEVEL_STEP,
            "base": np.where(kept >= 0, base[kept], 0.0),
            "rest_turn": rest_turn,
        }
        # A block's matrix is the Kronecker product of one for what a number stands for, which its
        # table takes, and one for its numbers.
        for bits, table in exact.lookups.items():
            fast[f"lookup{bits}"] = table @ coding.hadamard(table.shape[1])
            fast[f"outer{bits}"] = coding.hadamard(BLOCK // table.shape[1]) / math.sqrt(BLOCK)
        for name, table in fast.items():
            self.register_buffer(
                name, torch.tensor(np.array(table), dtype=torch.float32), persistent=False
            )
        for name, index in (("place", place), ("rest_band", rest_band)):
            self.register_buffer(name, torch.from_numpy(index), persistent=False)
        self._has_shift = normalizer is None
        self._kept: list[Tensor] = []

    def _stored_order(self) -> Int[np.ndarray, " m"]:
        """The stored places as ``spread`` has them: of each band the whole blocks, first what their
        first numbers stand for; then what is left of all bands."""
        places, wholes, rests, start = np.arange(len(self.codec.order)), [], [], 0
        for band, whole in zip(self._layout.bands, self._wholes, strict=True):
            k = at_once(band.bits)
            inside = places[start : start + whole].reshape(-1, BLOCK // k, k)
            wholes.append(inside.transpose(1, 0, 2).reshape(-1))
            rests.append(places[start + whole : start + band.size])
            start += band.size
        return np.concatenate(wholes + rests)

    def _rest(self) -> tuple[Float[np.ndarray, "r r"], Int[np.ndarray, " r"]]:
        """``rest_turn`` and ``rest_band``."""
        blocks = [
            (i, block, at_once(band.bits))
            for i, band in enumerate(self._layout.bands)
            for _, _, block in coding.pieces(band.size)
            if block < BLOCK
        ]
        turn = np.zeros((0, 0))
        for _, block, k in blocks:
            inside = np.kron(coding.hadamard(block // k), np.eye(k)) / math.sqrt(block)
            turn = np.pad(turn, (0, block))
            turn[-block:, -block:] = inside
        band = [np.full(block, i) for i, block, _ in blocks]
        return turn, np.concatenate([np.zeros(0, np.int64), *band])

    @torch.no_grad()
    def encode(self, rows: Shaped[Tensor, "n ..."]) -> UInt8[Tensor, "n bytes"]:
        """Codes of rows of row_shape, on their device; errors as RowCodec.encode."""
        with without_autocast(rows.device.type):
            return self._encode(rows)

    def _encode(self, rows: Shaped[Tensor, "n ..."]) -> UInt8[Tensor, "n bytes"]:
        check_rows(tuple(rows.shape), self.codec.row_shape)
        if not len(rows):
            return rows.new_empty((0, self.codec.num_bytes), dtype=torch.uint8)
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
        if not len(codes):
            return self._nothing(codes.device)
        tables = self._tables_on(codes.device)
        y = coding.decode(tables, self._layout, codes)
        rows = coding.untransform(tables, self._layout, y)
        return rows.reshape(len(codes), *self.codec.row_shape)

    @torch.no_grad()
    def forward(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n ..."]:
        """Decoded and normalised rows, float32, even under autocast."""
        self._check(codes)
        if not len(codes):  # a share of a batch may hold no row of a teacher
            return self._nothing(codes.device)
        with without_autocast(codes.device.type):
            return self._normalised(codes)

    def _nothing(self, device: torch.device) -> Float[Tensor, "n ..."]:
        return torch.empty((0, *self.codec.row_shape), device=device)

    def _normalised(self, codes: UInt8[Tensor, "n bytes"]) -> Float[Tensor, "n ..."]:
        n = step = len(codes)
        if codes.device.type == "cpu":
            step = max(1, min(n, _CPU_VALUES // self.codec.num_coefficients))
        scales, wholes, rest = self._numbers(codes)
        rows = scales.new_empty((n, *self.codec.mean_row.shape))
        room = self._room(3 * step * len(self.base)).view(3, -1)
        stored = room[0].view(step, -1)
        stored[:, len(self.spread) :] = self.base[len(self.spread) :]
        for start in range(0, n, step):
            some = slice(start, min(n, start + step))
            part = stored[: some.stop - start]
            self._fill(part, scales[some], [which[some] for which in wholes], rest[some], *room[1:])
            tokens = self._tokens(part, *room[1:])
            torch.matmul(tokens, self.turn, out=rows[some])
        if room.device.type == "cpu":
            self._kept = [room.view(-1)]
        if self._has_shift:
            rows.add_(self.shift)
        return rows.reshape(n, *self.codec.row_shape)

    def _room(self, size: int) -> Float[Tensor, " size"]:
        """Memory to compute in. A CPU is given the last call's: new pages take as long as a step
        of the work."""
        try:
            kept = self._kept.pop()  # a second thread finds none
        except IndexError:
            kept = None
        if kept is not None and kept.device == self.base.device and len(kept) >= size:
            return kept[:size]
        with torch.inference_mode(False):
            return torch.empty(size, device=self.base.device)

    def _numbers(
        self, codes: UInt8[Tensor, "n bytes"]
    ) -> tuple[Float[Tensor, "n b"], list[Int[Tensor, "n k"]], Float[Tensor, "n r"]]:
        """Scales, the numbers of the whole blocks of each band, and the rotated rest of all."""
        n, start, bands = len(codes), 0, self._layout.bands
        if self._layout.scaled:
            start = SCALE_BYTES * len(bands)
            scales = codes[:, :start].reshape(-1).view(torch.float16).reshape(n, -1).float()
        else:
            scales = torch.ones((n, len(bands)), device=codes.device)
        wholes, rests = [], [scales[:, :0]]
        for band, whole in zip(bands, self._wholes, strict=True):
            which = numbers(codes[:, start : start + band.num_bytes], band.bits)
            start += band.num_bytes
            num = whole // at_once(band.bits)
            wholes.append(which[:, :num])
            if whole < band.size:
                values = F.embedding(which[:, num:], self.get_buffer(f"lookup{band.bits}"))
                rests.append(values.reshape(n, -1))
        rest = torch.cat(rests, dim=1) * scales[:, self.rest_band]
        return scales, wholes, rest @ self.rest_turn

    def _fill(
        self,
        out: Float[Tensor, "n m"],
        scales: Float[Tensor, "n b"],
        wholes: list[Int[Tensor, "n k"]],
        rest: Float[Tensor, "n r"],
        room: Float[Tensor, " v"],
        more: Float[Tensor, " v"],
    ) -> None:
        """Stored coefficients, where ``base`` has them; ``room`` and ``more`` are written over."""
        n, start = len(out), 0
        for i, (band, which) in enumerate(zip(self._layout.bands, wholes, strict=True)):
            k = at_once(band.bits)
            size, num = which.shape[1] * k, BLOCK // k
            if size == 0:
                continue
            values, turned = (some[: n * size].view(num, -1) for some in (room, more))
            first = which.reshape(n, -1, num).permute(2, 0, 1).reshape(-1)
            table = self.get_buffer(f"lookup{band.bits}")
            torch.index_select(table, 0, first, out=values.view(-1, k))
            if self._layout.scaled:
                values.view(num, n, -1).mul_(scales[:, i : i + 1])
            torch.mm(self.get_buffer(f"outer{band.bits}"), values, out=turned)
            here = slice(start, start + size)
            torch.addcmul(
                self.base[here].view(num, -1),
                turned.view(num, n, -1).transpose(0, 1),
                self.spread[here].view(num, -1),
                out=out[:, here].unflatten(1, (num, -1)),
            )
            start += size
        here = slice(start, len(self.spread))
        torch.addcmul(self.base[here], rest, self.spread[here], out=out[:, here])

    def _tokens(
        self, stored: Float[Tensor, "n m"], room: Float[Tensor, " v"], more: Float[Tensor, " v"]
    ) -> Float[Tensor, "n t c"]:
        """Principal axes of the tokens, in ``room`` or ``more``."""
        (h, w), n = self._layout.grid, len(stored)
        y, other = (some[: n * len(self.place)].view(n, -1) for some in (room, more))
        if stored.device.type == "cpu":  # row by row, which is several times as fast there
            for row, out in zip(stored, y, strict=True):
                torch.index_select(row, 0, self.place, out=out)
        else:
            torch.index_select(stored, 1, self.place, out=y)
        if w > 1:
            torch.matmul(self.across, y.view(n, h, w, -1), out=other.view(n, h, w, -1))
            y, other = other, y
        if h > 1:
            torch.matmul(self.down, y.view(n, h, -1), out=other.view(n, h, -1))
            y, other = other, y
        return y.view(n, h * w, -1)

    def _tables_on(self, device: torch.device) -> coding.Tables:
        if self._exact.axes.device != device:
            self._exact = self._exact.map(lambda table: table.to(device))
        return self._exact

    def _check(self, codes: Tensor) -> None:
        check_codes(tuple(codes.shape), codes.dtype == torch.uint8, self.codec.num_bytes)
