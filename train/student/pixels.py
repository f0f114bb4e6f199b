"""Stored pixels as the student sees them; resized, they are what Pillow makes of them, to the bit.

The student is shown stored pixels at a size of its own; whoever uses it later has Pillow or timm's
transform resize them. An interpolation in floating point differs from these by up to half a level
of 255, which moved features by 3 %; torch's own of uint8 differs in one pixel of 300.

Pillow resizes first along the width, then along the height, and rounds to uint8 after each:
    out = clip(floor((in W^T + 2^21) / 2^22), 0, 255)
with integer triangle weights whose rows sum to 2^22 (Pillow's libImaging/Resample.c). Products and
sums stay below 2^31, so that float64 holds them exactly in any order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

ONE = 1 << 22
"""Pillow's weights are counted in parts of this."""


def resize(images: UInt8[Tensor, "b c s s"], size: int) -> UInt8[Tensor, "b c {size} {size}"]:
    """What ``PIL.Image.resize((size, size), BILINEAR)`` gives for each image."""
    device = images.device
    if images.shape[-1] == size:
        return images
    if device.type == "mps":  # it has no float64
        return resize(images.cpu(), size).to(device)
    weights = pillow_weights(images.shape[-1], size).to(device)
    wide = _rounded(images.double() @ weights.T)
    return _rounded(weights @ wide).to(torch.uint8)


def to_images(pixels: UInt8[Tensor, "b S S 3"], size: int) -> Float[Tensor, "b 3 {size} {size}"]:
    """uint8 pixels as float32 images in 0 to 1, at ``size``."""
    return resize(pixels.permute(0, 3, 1, 2), size).float().div_(255)


def _rounded(sums: Tensor) -> Tensor:
    return sums.add_(ONE // 2).div_(ONE).floor_().clamp_(0, 255)


@lru_cache(maxsize=64)
def pillow_weights(given: int, wanted: int) -> Float[Tensor, "{wanted} {given}"]:
    """Whole numbers, in float64: the weight of each given pixel in each wanted one."""
    scale = given / wanted
    reach = max(scale, 1.0)  # a triangle of one pixel each way, wider where pixels are left out
    centre = (torch.arange(wanted, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(given, dtype=torch.float64)
    inside = (pixel >= (centre - reach + 0.5).floor()) & (pixel < (centre + reach + 0.5).floor())
    weights = (1 - (pixel - centre + 0.5).abs() / reach).clamp(min=0) * inside
    return (0.5 + weights / weights.sum(1, keepdim=True) * ONE).floor()
