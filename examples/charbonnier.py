"""A loss of one's own with an option: this file is all it takes.

phistill train my.cache --out runs/charbonnier --set patch_loss=charbonnier:loss \\
  --set 'patch_loss_options={epsilon=0.1}'

run where this file lies, or with its folder on PYTHONPATH.
"""

from __future__ import annotations

from torch import Tensor


def loss(prediction: Tensor, target: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """sqrt((x - y)^2 + epsilon^2), a mean over tokens and channels: (b, t, c) twice to (b,).

    Charbonnier et al. 1994: quadratic near 0, linear far away, so that outliers weigh less.
    """
    return ((prediction - target).square() + epsilon**2).sqrt().mean((1, 2))
