"""Reads the parquet files of `build_images` and augments batches of their drawings.

Pixels are kept premultiplied (colour times alpha), because that is what may be resized and rotated.
Legend: n drawings, b batch, s side of the stored squares, S side of what a model sees.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

BUNDLED = Path(__file__).parent / "images.parquet"
GREY = 128 / 255
"""Mid-grey behind transparent pixels: white drawings vanish on white and black ones on black."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Drawings of one split: premultiplied squares (n, 4, s, s) uint8 and their words."""

    squares: UInt8[Tensor, "n 4 s s"]
    names: list[str]
    folders: list[str]
    categories: list[str]
    rows: list[int]
    """Row numbers in the parquet file."""


def decode_square(data: bytes, side: int) -> UInt8[np.ndarray, "4 s s"]:
    """Decode WebP and resize the whole drawing to a square, premultiplied, aspect not kept."""
    with Image.open(io.BytesIO(data)) as file:
        premultiplied = file.convert("RGBA").convert("RGBa")
    small = premultiplied.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def read_pictures(path: Path, *, split: str, side: int) -> Pictures:
    """Read one split ("train" or "heldout") of a parquet file of `build_images`."""
    table = pq.read_table(path)
    rows = [i for i, here in enumerate(table["split"].to_pylist()) if here == split]
    table = table.take(rows)
    squares = [decode_square(data, side) for data in table["image"].to_pylist()]
    return Pictures(
        squares=torch.from_numpy(np.stack(squares)),
        names=table["name"].to_pylist(),
        folders=table["folders"].to_pylist(),
        categories=table["category"].to_pylist(),
        rows=rows,
    )


def composite(
    rgba: Float[Tensor, "b 4 s s"], background: Float[Tensor, "b 3"] | float
) -> Float[Tensor, "b 3 s s"]:
    """Lay premultiplied pixels (0 to 1) over one colour per image."""
    alpha = rgba[:, 3:]
    behind = background if isinstance(background, float) else background[:, :, None, None]
    return rgba[:, :3] + (1 - alpha) * behind


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of one batch; the defaults change nothing but the background."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Side of the visible window relative to the drawing, drawn log-uniformly."""

    stretch: float = 1.0
    """Largest ratio by which the window's aspect is changed either way."""

    rotate: float = 0.0
    """Largest rotation, in degrees."""

    flip: bool = False
    colour: float = 0.0
    """Strength of the random change of brightness, contrast and channel gains; 0 to 1."""

    drop_colour: float = 0.0
    """Probability of turning an image grey."""

    random_background: float = 0.5
    """Probability of a uniformly random colour behind the drawing instead of mid-grey."""


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Float[Tensor, " n"]:
    return torch.rand(n, generator=rng) * (high - low) + low


def random_windows(n: int, aug: Augmentation, rng: torch.Generator) -> Float[Tensor, "n 2 3"]:
    """Affine maps from output to input coordinates in [-1, 1]; windows mostly stay inside."""
    side = torch.exp(uniform(n, math.log(aug.scale[0]), math.log(aug.scale[1]), rng))
    ratio = torch.exp(uniform(n, -math.log(aug.stretch), math.log(aug.stretch), rng) / 2)
    width, height = side * ratio, side / ratio
    angle = torch.deg2rad(uniform(n, -aug.rotate, aug.rotate, rng))
    room_x, room_y = (1 - width).abs(), (1 - height).abs()
    shift_x = uniform(n, -1.0, 1.0, rng) * room_x
    shift_y = uniform(n, -1.0, 1.0, rng) * room_y
    mirror = (
        torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0) if aug.flip else torch.ones(n)
    )
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack(
        [
            torch.stack([mirror * width * cos, -height * sin, shift_x], dim=1),
            torch.stack([mirror * width * sin, height * cos, shift_y], dim=1),
        ],
        dim=1,
    )


def change_colours(
    images: Float[Tensor, "b 3 S S"], aug: Augmentation, rng: torch.Generator
) -> Float[Tensor, "b 3 S S"]:
    n = len(images)
    gain = torch.exp(aug.colour * (torch.rand(n, 3, 1, 1, generator=rng) - 0.5))
    contrast = torch.exp(aug.colour * (torch.rand(n, 1, 1, 1, generator=rng) * 2 - 1))
    offset = 0.4 * aug.colour * (torch.rand(n, 1, 1, 1, generator=rng) * 2 - 1)
    images = (((images - 0.5) * contrast + 0.5) * gain + offset).clamp(0, 1)
    grey = torch.rand(n, 1, 1, 1, generator=rng) < aug.drop_colour
    return torch.where(grey, images.mean(dim=1, keepdim=True), images)


def augmented(
    squares: UInt8[Tensor, "b 4 s s"], size: int, aug: Augmentation, rng: torch.Generator
) -> tuple[Float[Tensor, "b 3 S S"], Float[Tensor, "b S S"]]:
    """Return (images in 0 to 1 over a background, their alpha), both of side `size`."""
    n = len(squares)
    grid = F.affine_grid(random_windows(n, aug, rng), [n, 4, size, size], align_corners=False)
    rgba = F.grid_sample(squares.float() / 255, grid, align_corners=False)
    random = torch.rand(n, 1, generator=rng) < aug.random_background
    background = torch.where(random, torch.rand(n, 3, generator=rng), torch.full((n, 3), GREY))
    images = composite(rgba, background)
    if aug.colour or aug.drop_colour:
        images = change_colours(images, aug, rng)
    return images, rgba[:, 3]


def channel_stats(squares: UInt8[Tensor, "n 4 s s"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per colour over mid-grey, rounded as they are written to JSON."""
    images = composite(squares.float() / 255, GREY)
    mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]
