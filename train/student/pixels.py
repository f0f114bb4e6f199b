"""Stored pixels as the student sees them; resized, they are what Pillow makes of them, to the bit.

The student is shown stored pixels at a size of its own; whoever uses it later has Pillow or timm's
transform resize them. An interpolation in floating point differs from these by up to half a level
of 255, which moved features by 3 %; torch's own of uint8 differs in one pixel of 300.

Pillow resizes first along the width, then along the height, and rounds to uint8 after each:
    out = clip(floor((in W^T + 2^21) / 2^22), 0, 255)
with integer weights whose rows sum to 2^22, of the cubic with a = -1/2 that stored pixels were made
with (Pillow's libImaging/Resample.c). Products and sums stay below 2^32, so that float64 holds them
exactly in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from phistill.errors import UsageError

ONE = 1 << 22
"""Pillow's weights are counted in parts of this."""


def resize(images: UInt8[Tensor, "b c s s"], size: int) -> UInt8[Tensor, "b c {size} {size}"]:
    """What ``PIL.Image.resize((size, size), BICUBIC)`` gives for each image."""
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
    stretch = max(scale, 1.0)  # the cubic is as wide as what one wanted pixel covers
    reach = 2 * stretch
    centre = (torch.arange(wanted, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(given, dtype=torch.float64)
    inside = (pixel >= (centre - reach + 0.5).floor()) & (pixel < (centre + reach + 0.5).floor())
    x = ((pixel - centre + 0.5) / stretch).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * inside
    parts = weights / weights.sum(1, keepdim=True) * ONE
    return torch.where(parts < 0, parts - 0.5, parts + 0.5).trunc()


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How a picture becomes the student's input, as the rows that it was trained on did."""

    view: str
    """``resize`` squeezes the whole picture; ``center-crop`` takes the largest centred square, cut
    out after the shorter side is resized.
    Where every stored view is a random crop, it is ``resize``: of the crop nothing is known."""

    background: tuple[int, int, int]
    """Behind what is transparent."""

    pixel_size: int
    """Side of the stored pixels."""

    image_size: int
    """Side of what the student sees; made from the stored pixels."""

    @classmethod
    def of_run(cls, facts: Mapping[str, Any]) -> Preparation:
        """From what a checkpoint says; of several caches, as the first."""
        first = facts["caches"][0]
        kinds = [view["kind"] for view in first["views"]]
        return cls(
            view="center-crop" if kinds[0] == "center-crop" else "resize",
            background=tuple(first["decode"].get("background", (128, 128, 128))),
            pixel_size=int(first["pixel_size"]),
            image_size=int(facts["image_size"]),
        )

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 S S"]:
        """Upright, over the background, squeezed; UsageError for more than 8 bits a channel."""
        picture = ImageOps.exif_transpose(image)
        if picture.mode[:2] == "I;" or picture.mode in ("I", "F"):
            raise UsageError(
                f"a picture of mode {picture.mode} has no stated range. Make it 8 bits a channel "
                "first."
            )
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            behind = Image.new("RGBA", picture.size, (*self.background, 255))
            picture = Image.alpha_composite(behind, picture)
        picture = picture.convert("RGB")
        side = width = height = self.pixel_size
        if self.view == "center-crop":
            longer = int(side * max(picture.size) / min(picture.size))
            width, height = (longer, side) if picture.width > picture.height else (side, longer)
        left, top = round((width - side) / 2), round((height - side) / 2)
        squeezed = picture.resize((width, height), Image.Resampling.BICUBIC)
        squeezed = squeezed.crop((left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)
        return resize(pixels[None], self.image_size)[0].contiguous()
