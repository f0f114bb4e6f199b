"""A head of one's own: a narrow middle, so that a teacher costs few parameters.

phistill train my.cache --out runs/narrow --set head=narrow_head:head --set head_width=64

run where this file lies, or with its folder on PYTHONPATH.
"""

from __future__ import annotations

from torch import Tensor, nn


class NarrowHead(nn.Module):
    """Linear to ``width`` channels, GELU, linear: (..., d) -> (..., c)."""

    def __init__(self, d: int, width: int, c: int) -> None:
        super().__init__()
        self.first = nn.Linear(d, width)
        self.last = nn.Linear(width, c)  # the inverse normalizer is folded into it on export

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.first(x)))


def head(d: int, width: int, c: int) -> nn.Module:
    """``d`` channels of the student, ``width`` of the setting head_width, ``c`` of the teacher."""
    return NarrowHead(d, width, c)
