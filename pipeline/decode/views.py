"""Views: which part of an image is looked at, and whether it is mirrored.

A view is a crop box and a flip: a function of (seed, image id, view number, width, height), so that
any teacher added later sees the same pixels. Each teacher and the student resize that box to their
own input. Geometry is in pixels of the upright image. A mirrored view has features of its own:
mirroring a cached grid is not the feature of the mirrored image.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any, Self
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phistill.errors import UsageError, did_you_mean

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""

KINDS = ("resize", "center-crop", "random-resized-crop")
FLIPS = ("no", "yes", "random")
NUM_TRIES = 10
"""Draws of a random crop before the largest centred one is taken, as is usual."""

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A view of one image."""

    box: Box
    """(left, top, right, bottom)."""
    flip: bool = False
    """Mirrored left to right after the crop."""
    centred: bool = False
    """Of a ``center-crop``: the crop comes after the resize, as in everybody's transforms."""


@dataclass(frozen=True, slots=True)
class View:
    """``resize`` squeezes the whole image into the input; ``center-crop`` takes the largest centred
    square, so that proportions are kept; ``random-resized-crop`` draws a box."""

    kind: str = "resize"
    scale: tuple[float, float] = (0.25, 1.0)
    """Of a random crop: smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (0.75, 4.0 / 3.0)
    """Of a random crop: smallest and largest width over height."""
    flip: str = "no"
    """``no``, ``yes``, or ``random`` for every second image."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"view {self.kind!r} is not known; choose one of {', '.join(KINDS)}."
                f"{did_you_mean(self.kind, KINDS)}"
            )
        if self.flip not in FLIPS:
            raise UsageError(f"flip={self.flip!r} is not known; choose one of {', '.join(FLIPS)}.")
        low, high = self.scale
        if not 0.0 < low <= high <= 1.0:
            raise UsageError(
                f"scale={self.scale} must be two shares of the area, the smaller first."
            )
        if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100.0:
            raise UsageError(
                f"ratio={self.ratio} must be two numbers in [0.01, 100], the smaller first."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """A view written as ``KIND[?scale=0.4,1&ratio=0.75,1.33&flip=random]``."""
        kind, _, query = text.partition("?")
        try:
            options = dict(parse_qsl(query, strict_parsing=bool(query)))
            if unknown := sorted(set(options) - {"scale", "ratio", "flip"}):
                raise UsageError(
                    f"view {text!r}: unknown options {', '.join(unknown)}; known are scale, ratio "
                    "and flip."
                )
            record: dict[str, Any] = {"kind": kind, **options}
            for name in ("scale", "ratio"):
                if name in options:
                    low, high = options[name].split(",")
                    record[name] = (float(low), float(high))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(
                f"view {text!r} is not KIND[?scale=LOW,HIGH&ratio=LOW,HIGH&flip=random]."
            ) from error
        return cls(**record)

    @property
    def is_random(self) -> bool:
        """Whether the seed and the image's id matter."""
        return self.kind == "random-resized-crop" or self.flip == "random"

    def place(self, size: tuple[int, int], *, seed: int, image_id: str, number: int) -> Placement:
        """The view ``number`` of the image ``image_id`` with (width, height) ``size``."""
        draw = _Draws(f"{seed}:{number}:{image_id}")
        flip = self.flip == "yes" or (self.flip == "random" and draw.next() < 0.5)
        if self.kind == "random-resized-crop":
            return Placement(self._crop(size, draw), flip)
        return Placement(self.box(size), flip, centred=self.kind == "center-crop")

    def box(self, size: tuple[int, int]) -> Box:
        """(left, top, right, bottom) of a view that does not depend on the seed."""
        width, height = size
        if self.kind == "resize":
            return 0, 0, width, height
        if self.kind != "center-crop":
            raise UsageError(f"the box of a {self.kind} depends on seed and image; use place.")
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def _crop(self, size: tuple[int, int], draw: _Draws) -> Box:
        """Area uniform in ``scale``, log of the ratio uniform in ``ratio``, position uniform."""
        width, height = size
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(NUM_TRIES):
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * draw.next())
            ratio = math.exp(low + (high - low) * draw.next())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(draw.next() * (width - w + 1))
                top = int(draw.next() * (height - h + 1))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def to_dict(self) -> dict[str, Any]:
        """The kind, and what differs from the default."""
        record: dict[str, Any] = {"kind": self.kind}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default:
                record[entry.name] = list(value) if isinstance(value, tuple) else value
        return record

    def __str__(self) -> str:
        """As parse() reads it."""
        options = self.to_dict()
        kind = str(options.pop("kind"))
        texts = (
            ",".join(map(repr, value)) if isinstance(value, list) else str(value)
            for value in options.values()
        )
        query = "&".join(f"{name}={text}" for name, text in zip(options, texts, strict=True))
        return f"{kind}?{query}" if query else kind

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**values)


class _Draws:
    """Uniform numbers in [0, 1) from sha256: the same on every machine and in every version."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key, 0

    def next(self) -> float:
        digest = hashlib.sha256(f"{self._count}:{self._key}".encode()).digest()
        self._count += 1
        # 53 bits: more would round up to 1.0.
        return (int.from_bytes(digest[:7], "big") >> 3) / 2.0**53


@dataclass(frozen=True, slots=True)
class Rendering:
    """An input that a view is rendered to; teachers that agree on it share the work."""

    size: tuple[int, int]
    """(height, width)."""
    interpolation: str


LONGEST = 16
"""Sides of an image in a ratio above this are cropped before they are resized."""


def render(image: Image.Image, place: Placement, rendering: Rendering) -> NDArray[np.uint8]:
    """A view of an RGB image as uint8 (height, width, 3), mirrored when asked."""
    height, width = rendering.size
    how = RESAMPLING[rendering.interpolation]
    if place.centred and height == width and max(image.size) <= LONGEST * min(image.size):
        resized = _centred(image, height, how)
    else:
        resized = image.resize((width, height), how, box=place.box)
    return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place.flip else resized)


def _centred(image: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    """The shorter side made ``side``, then the middle: torchvision's Resize and CenterCrop to the
    bit, so that timm's transform shows a student what it was trained on."""
    width, height = image.size
    longer = int(side * max(width, height) / min(width, height))
    width, height = (longer, side) if width > height else (side, longer)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), how).crop((left, top, left + side, top + side))
