"""The alpha matte as `mask` predicts it: 12 x 12 tokens, each holding 5 x 5 alpha values.

Legend: b images, S side (60), g tokens per side (12), t = g * g tokens, p = 5, pp = p * p.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

PATCH = 5


def cells(alpha: Float[Tensor, "b S S"]) -> Float[Tensor, "b t pp"]:
    """Group pixels by token: (b, g * g, p * p), both row-major."""
    b, side, _ = alpha.shape
    g = side // PATCH
    return alpha.reshape(b, g, PATCH, g, PATCH).transpose(2, 3).reshape(b, g * g, PATCH * PATCH)


def pixels(by_token: Float[Tensor, "b t pp"]) -> Float[Tensor, "b S S"]:
    """Undo `cells`."""
    b, t, _ = by_token.shape
    g = round(t**0.5)
    return by_token.reshape(b, g, g, PATCH, PATCH).transpose(2, 3).reshape(b, g * PATCH, g * PATCH)
