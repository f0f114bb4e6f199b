"""Views: which part of an image is looked at, as a function of its size alone.

A view is a crop box; each teacher and the student resize that box to their own input. Geometry is
in pixels of the upright image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache.commit import Box
from ..cache.errors import UsageError

KINDS = ("resize", "center-crop")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class View:
    """``resize`` squeezes the whole image into the input; ``center-crop`` takes the largest centred
    square, so that proportions are kept."""

    kind: str = "resize"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"view {self.kind!r} is not known; choose one of {', '.join(KINDS)}.")

    def box(self, size: tuple[int, int]) -> Box:
        """(left, top, right, bottom) of the view in an image of (width, height)."""
        width, height = size
        if self.kind == "resize":
            return 0, 0, width, height
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> View:
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Rendering:
    """An input that a view is rendered to; teachers that agree on it share the work."""

    size: tuple[int, int]
    """(height, width)."""
    interpolation: str


def render(image: Image.Image, box: Box, rendering: Rendering) -> NDArray[np.uint8]:
    """The box of an RGB image as uint8 (height, width, 3)."""
    height, width = rendering.size
    resized = image.resize((width, height), RESAMPLING[rendering.interpolation], box=box)
    return np.asarray(resized)
