"""What an image processor of transformers does to a picture: it is asked, and not its config read.

Its config says the same thing in many ways (``size`` as a number or in parts, ``crop_pct``,
``do_rescale``, ``rescale_factor``, ``do_normalize``, defaults of the class). Three pictures of one
colour show the size, the factor and the offset that come out of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phistill.errors import UsageError

from .contract import INTERPOLATIONS, Preprocessing

if TYPE_CHECKING:
    import torch

HALF = (0.5, 0.5, 0.5)
PROBE_SIDE = 300
TOLERANCE = 1e-5
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""What the numbers in an image processor's ``resample`` mean."""
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def preprocessing_of(
    model: str, source: Mapping[str, Any], own_size: Any, size: tuple[int, int] | None
) -> tuple[Preprocessing, bool]:
    """What the model's image processor does to a picture, and whether it swaps red and blue.

    Where the repository has no processor, ``own_size`` of the model's config, and 0.5."""
    from transformers import AutoImageProcessor

    auto: Any = AutoImageProcessor
    try:
        processor = auto.from_pretrained(model, **source)
    except OSError:
        if size is None and own_size is None:
            raise UsageError(
                f"transformers:{model} does not state its input; give size=224."
            ) from None
        return Preprocessing(size=size or pair(own_size), mean=HALF, std=HALF), False
    white, black, red = (_processed(processor, c, model) for c in (WHITE, BLACK, RED))
    height, width = white.shape[1:]
    # An affine function of each channel, whatever the config calls its parts.
    zero, one = black[:, 0, 0].double(), white[:, 0, 0].double()
    bgr = bool(red[2, 0, 0] > red[0, 0, 0])
    if bgr:
        zero, one = zero.flip(0), one.flip(0)
    return Preprocessing(
        size=size or (height, width),
        mean=_stated(-zero / (one - zero), getattr(processor, "image_mean", None)),
        std=_stated(1 / (one - zero), getattr(processor, "image_std", None)),
        interpolation=_interpolation(getattr(processor, "resample", None)),
    ), bgr


def _processed(processor: Any, colour: tuple[int, int, int], model: str) -> torch.Tensor:
    """A square picture of one colour as the model wants it, (3, h, w)."""
    import torch
    from PIL import Image

    picture = Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), colour)
    values = processor(images=picture, return_tensors="pt")["pixel_values"]
    if not isinstance(values, torch.Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
        raise UsageError(
            f"transformers:{model}: its image processor gives pixel_values of shape "
            f"{tuple(getattr(values, 'shape', ()))}; wanted (1, 3, h, w). Models that take an "
            "image in pieces are not supported."
        )
    return values[0].float()


def _stated(measured: torch.Tensor, stated: Any) -> tuple[float, float, float]:
    """The config's own numbers where they are what was measured, to float32's rounding."""
    numbers = [float(f"{number:.6g}") + 0.0 for number in measured.tolist()]  # no negative zero
    if isinstance(stated, list | tuple) and len(stated) == 3:
        pairs = zip(numbers, stated, strict=True)
        if all(abs(one - two) < TOLERANCE for one, two in pairs):
            numbers = [float(number) for number in stated]
    red, green, blue = numbers
    return red, green, blue


def _interpolation(resample: Any) -> str:
    """From Pillow's number, or torchvision's name."""
    if resample is None:
        return "bicubic"
    value = getattr(resample, "value", resample)
    name = PILLOW_FILTERS.get(value, value)
    if name not in INTERPOLATIONS:
        raise UsageError(f"the image processor's resample={resample} has no counterpart here.")
    return name


def pair(number: Any) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else (int(number[0]), int(number[1]))
