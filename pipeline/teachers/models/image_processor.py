"""What an image processor of transformers does to a picture: it is asked, and not its config read.

Its config says the same thing in many ways (``size`` as a number or in parts, ``crop_pct``,
``do_rescale``, ``rescale_factor``, ``do_normalize``, defaults of the class). Pictures of one colour
show the size, the factor and the offset that come out of all of them, a slope whether it is still
one picture, and a larger picture whether the size is the processor's or the picture's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phistill.errors import UsageError

from ..contract import INTERPOLATIONS, Preprocessing

if TYPE_CHECKING:
    import torch
    from PIL import Image

HALF = (0.5, 0.5, 0.5)
PROBE_SIDE, LARGER_SIDE = 300, 420
TOLERANCE = 1e-5
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""What the numbers in an image processor's ``resample`` mean."""
WHITE, BLACK, RED, GREY = (255, 255, 255), (0, 0, 0), (255, 0, 0), (51, 51, 51)
PADS = "its image processor pads the picture, which is shown here at the full size of the input."


@dataclass(frozen=True, slots=True)
class Processing:
    """What an image processor does to a picture."""

    preprocessing: Preprocessing
    bgr: bool = False
    """Red and blue are handed over swapped."""
    notes: tuple[str, ...] = ()


def processing_of(
    model: str, source: Mapping[str, Any], own_size: Any, size: tuple[int, int] | None
) -> Processing:
    """What the model's image processor does to a picture.

    Where the repository has no processor, ``own_size`` of the model's config, and 0.5. UsageError
    for a processor that gives no one picture, or one whose size is the picture's own and which
    neither ``size`` nor ``own_size`` says.
    """
    from transformers import AutoImageProcessor

    auto: Any = AutoImageProcessor
    stated = size or (None if own_size is None else pair(own_size))
    try:
        processor = auto.from_pretrained(model, **source)
    except OSError:
        if stated is None:
            raise UsageError(
                f"transformers:{model} does not state its input; give size=224."
            ) from None
        return Processing(Preprocessing(size=stated, mean=HALF, std=HALF))
    white, black, red, grey = (
        _processed(processor, _plain(c), model) for c in (WHITE, BLACK, RED, GREY)
    )
    height, width = white.shape[1:]
    _require_one_picture(processor, model)
    larger = _processed(processor, _plain(WHITE, LARGER_SIDE), model)
    if larger.shape != white.shape:
        if stated is None:
            raise UsageError(f"transformers:{model} takes pictures of any size; give size=224.")
        height, width = stated
    # An affine function of each channel, whatever the config calls its parts. In the middle: some
    # processors pad.
    zero, one, fifth = (_middle(image).double() for image in (black, white, grey))
    if not (one != zero).all() or not fifth.allclose(zero + (one - zero) / 5, atol=1e-3):
        raise UsageError(
            f"transformers:{model}: its image processor does more to a colour than to scale it and "
            "to take a mean off, so what it does cannot be done here."
        )
    swapped = _middle(red)
    bgr = bool(swapped[2] > swapped[0])
    if bgr:
        zero, one = zero.flip(0), one.flip(0)
    preprocessing = Preprocessing(
        size=size or (height, width),
        mean=_stated(-zero / (one - zero), getattr(processor, "image_mean", None)),
        std=_stated(1 / (one - zero), getattr(processor, "image_std", None)),
        interpolation=_interpolation(getattr(processor, "resample", None)),
    )
    pads = not all(
        image.allclose(_middle(image)[:, None, None], atol=1e-3) for image in (white, black)
    )
    return Processing(preprocessing, bgr, (PADS,) if pads else ())


def _plain(colour: tuple[int, int, int], side: int = PROBE_SIDE) -> Image.Image:
    """A square picture of one colour."""
    from PIL import Image

    return Image.new("RGB", (side, side), colour)


def _processed(processor: Any, picture: Image.Image, model: str) -> torch.Tensor:
    """A picture as the model wants it, (3, h, w)."""
    import torch

    try:
        values = processor(images=picture, return_tensors="pt")["pixel_values"]
    except Exception as error:  # of a library, for pictures that it does not take one by one
        raise UsageError(
            f"transformers:{model}: its image processor makes no pixel_values of a picture alone "
            f"({type(error).__name__}: {_first_line(error)}); such models are not supported."
        ) from error
    if not isinstance(values, torch.Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
        raise UsageError(
            f"transformers:{model}: its image processor gives pixel_values of shape "
            f"{tuple(getattr(values, 'shape', ()))}; wanted (1, 3, h, w). Models that take an "
            "image in pieces are not supported."
        )
    return values[0].float()


def _require_one_picture(processor: Any, model: str) -> None:
    """UsageError where what is to the right in the picture is not to the right in the input, or
    what is below not below: it was cut into pieces, or turned."""
    import numpy as np
    from PIL import Image

    slope = np.linspace(0, 255, PROBE_SIDE).round().astype(np.uint8)
    picture = np.zeros((PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
    picture[..., 1] = slope[:, None]  # green, which no order of channels moves
    down = _processed(processor, Image.fromarray(picture), model)[1]
    right = _processed(processor, Image.fromarray(picture.transpose(1, 0, 2)), model)[1].T
    for values in (down, right):
        height, width = values.shape
        middle = values[height // 4 : height - height // 4, width // 4 : width - width // 4]
        steps = middle.mean(1).diff()
        range_ = values.max() - values.min()
        if (steps < -1e-3 * range_).any() or (middle.std(1, correction=0) > 0.02 * range_).any():
            raise UsageError(
                f"transformers:{model}: its image processor does not show a picture as one. Models "
                "that take an image in pieces are not supported."
            )


def _middle(image: torch.Tensor) -> torch.Tensor:
    """(3,)."""
    return image[:, image.shape[1] // 2, image.shape[2] // 2]


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


def _first_line(error: BaseException) -> str:
    return (" ".join(map(str, error.args)).strip().splitlines() or [""])[0][:200]
