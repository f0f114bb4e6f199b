"""Token grids of different sizes, and crops of them, brought together by explicit rules.

A grid of h x w tokens covers the unit square; token (i, j) is centred at ((i + 1/2) / h,
(j + 1/2) / w). Every rule here is linear in the tokens with weights that sum to 1, so it commutes
with an affine normalizer: normalising before or after is the same.

b rows, h w grid, c channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from phistill.compute.copies import placed

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRule:
    """How unequal grids meet; the fields are those of TrainConfig."""

    side: str = "student"
    interpolation: str = "bilinear"
    align_corners: bool = False

    def meeting(self, student: Grid, teacher: Grid) -> Grid:
        """The grid on which prediction and target are compared."""
        if self.side == "student":
            return teacher
        if self.side == "teacher":
            return student
        return min(student[0], teacher[0]), min(student[1], teacher[1])

    def resize(self, x: Float[Tensor, "b h w c"], grid: Grid) -> Float[Tensor, "b h2 w2 c"]:
        """Tokens on ``grid``; the same tensor when it already has that grid."""
        if x.shape[1:3] == grid:
            return x
        align = None if self.interpolation == "nearest" else self.align_corners
        moved = F.interpolate(
            x.permute(0, 3, 1, 2), grid, mode=self.interpolation, align_corners=align
        )
        return moved.permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A patch-aligned window of the student's grid: ``side`` of ``full`` tokens from top, left."""

    top: int
    left: int
    side: int
    full: int

    @property
    def is_whole(self) -> bool:
        return self.side == self.full

    def span(self, start: int) -> tuple[float, float]:
        """Begin and end of one axis in the unit square."""
        return start / self.full, (start + self.side) / self.full

    def seen(self, num: int, start: int) -> tuple[int, int]:
        """First and past-last of ``num`` tokens on an axis whose centres lie in the window."""
        low, high = self.span(start)
        first, last = math.ceil(low * num - 0.5), math.ceil(high * num - 0.5)
        return first, max(first, last)


def overlap(
    prediction: Float[Tensor, "b h w c"], target: Float[Tensor, "b th tw c"], crop: Crop, side: str
) -> tuple[Float[Tensor, "b n m c"], Float[Tensor, "b n m c"]]:
    """Prediction of a cropped view and target of the whole view, on the tokens both see.

    With side ``student`` the teacher's tokens whose centres lie in the window stay as they are and
    the prediction is read at their centres; otherwise the target is read at the centres of the
    student's tokens. Where the grids are the same both are plain slices. Reading is bilinear and
    clamped at the edge.
    """
    th, tw = target.shape[1:3]
    rows, columns = crop.seen(th, crop.top), crop.seen(tw, crop.left)
    if side == "student":
        y = _read_matrix(prediction, _centres(rows, th, *crop.span(crop.top)), axis=1)
        x = _read_matrix(prediction, _centres(columns, tw, *crop.span(crop.left)), axis=2)
        return _apply(prediction, y, x), target[:, slice(*rows), slice(*columns)]
    (top, bottom), (left, right) = crop.span(crop.top), crop.span(crop.left)
    h, w = prediction.shape[1:3]
    y = _read_matrix(target, [top + (i + 0.5) / h * (bottom - top) for i in range(h)], axis=1)
    x = _read_matrix(target, [left + (j + 0.5) / w * (right - left) for j in range(w)], axis=2)
    return prediction, _apply(target, y, x)


def _centres(span: tuple[int, int], num: int, low: float, high: float) -> list[float]:
    """Centres of tokens ``span`` of ``num``, as positions in the window [low, high]."""
    return [((i + 0.5) / num - low) / (high - low) for i in range(*span)]


def _read_matrix(x: Tensor, positions: list[float], axis: int) -> Float[Tensor, "n k"]:
    """Weights that read an axis of k tokens at ``positions`` in the unit interval, bilinearly."""
    k = x.shape[axis]
    at = torch.tensor(positions, dtype=torch.float64).mul(k).sub(0.5).clamp(0, k - 1)
    # A position meant to be a centre is off by some 1e-16; unrounded, a slice would not be one.
    at = torch.round(at * 2**30) / 2**30
    low = at.floor().long()
    matrix = torch.zeros(len(positions), k, dtype=torch.float64)
    line = torch.arange(len(positions))
    matrix[line, low] += 1 - (at - low)
    matrix[line, (low + 1).clamp(max=k - 1)] += at - low
    return placed(matrix.to(x.dtype), x.device)


def _apply(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("ni,mj,bijc->bnmc", y, z, x)
