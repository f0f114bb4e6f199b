"""A fitted normalizer as a torch module."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from phistill.compute.precision import without_autocast

from .normalizer import Normalizer


class NormalizerModule(nn.Module):
    """Applies y = W (x - mean) to the last axis; buffers mean (c,), W and Theta (c, c), float32.

    It has no parameters, computes in float32 even under autocast, and moves and saves like any
    other module.
    """

    mean: Tensor
    W: Tensor
    Theta: Tensor

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        for name, array in (
            ("mean", normalizer.mean),
            ("W", normalizer.forward),
            ("Theta", normalizer.inverse),
        ):
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """y = W (x - mean), float32."""
        with without_autocast(x.device.type):
            return F.linear(x.float() - self.mean, self.W)

    def inverse(self, y: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """x = Theta y + mean, float32."""
        with without_autocast(y.device.type):
            return F.linear(y.float(), self.Theta, self.mean)
