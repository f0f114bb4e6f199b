"""Changes to what the student sees that leave the cached targets true.

Photometric changes touch the student's pixels only: teacher features of the clean image are the
goal. A crop moves no token: the loss is taken where both sides see the same place. Mirroring is
not here, because a mirrored grid is not the feature of the mirrored image.

Every draw is a function of (seed, step, position in the global batch), never of ranks or parts.
Noise, which is as large as the images, is drawn on their device by a generator seeded with that.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from phistill.compute.copies import placed
from phistill.compute.seeds import normal_like

from ..config import TrainConfig
from .token_grids import Crop

PHOTOMETRIC, CROP, SIZE, NOISE = range(4)
"""Streams of random numbers that must not repeat each other."""

GREY = (0.299, 0.587, 0.114)
"""Luma of ITU-R BT.601, the weights image libraries use for grey."""


def _generator(config: TrainConfig, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([config.seed, stream, *numbers]))


def input_size(config: TrainConfig, size: int, step: int) -> int:
    """Side in pixels of this step's input: one of the configured sizes."""
    if not config.extra_image_sizes:
        return size
    sizes = (size, *config.extra_image_sizes)
    return sizes[int(_generator(config, SIZE, step).integers(len(sizes)))]


def draw_crop(config: TrainConfig, full: int, step: int) -> Crop | None:
    """This step's window on a grid of ``full`` x ``full`` tokens, or None for the whole image."""
    if config.crop_min >= 1:
        return None
    generator = _generator(config, CROP, step)
    side = int(generator.integers(max(1, round(config.crop_min * full)), full + 1))
    top, left = (int(n) for n in generator.integers(0, full - side + 1, 2))
    return None if side == full else Crop(top=top, left=left, side=side, full=full)


def photometric(
    images: Float[Tensor, "b 3 H W"], config: TrainConfig, *, step: int, first: int
) -> Float[Tensor, "b 3 H W"]:
    """Brightness, contrast, saturation and noise, in that order, clipped to 0 to 1.

    ``first`` is the position of images[0] in the step's global batch.
    """
    spreads = (config.brightness, config.contrast, config.saturation)
    if any(spreads):
        factors = 1 + np.array(spreads)[:, None] * _generator(config, PHOTOMETRIC, step).uniform(
            -1, 1, (3, config.batch_size)
        )
        brightness, contrast, saturation = _columns(factors[:, first : first + len(images)], images)
        images = images * brightness
        mean = _grey(images).mean((2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast)
        images = torch.lerp(_grey(images), images, saturation)
    if config.noise:
        images = images + config.noise * normal_like(
            images, _noise_seeds(config, step, first, images)
        )
    return images.clamp(0, 1) if any(spreads) or config.noise else images


def _grey(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1 H W"]:
    red, green, blue = images.split(1, 1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _noise_seeds(config: TrainConfig, step: int, first: int, images: Tensor) -> list[int]:
    """One for each image, so that neither ranks nor parts matter."""
    numbers = ([config.seed, NOISE, step, first + i] for i in range(len(images)))
    return [int(np.random.SeedSequence(n).generate_state(1, np.uint64)[0]) for n in numbers]


def _columns(factors: NDArray[np.float64], images: Tensor) -> Tensor:
    columns = torch.from_numpy(factors).to(images.dtype).view(3, -1, 1, 1, 1)
    return placed(columns, images.device)
