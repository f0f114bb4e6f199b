"""One image: bytes to the rendered views of it, or the reason why not.

This is what runs in a decoding thread or process; it imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .rgb import DecodeRules, Reject, decode
from .views import Box, Rendering, View, render


@dataclass(frozen=True, slots=True)
class DecodeSetup:
    """What all images of a run have in common."""

    rules: DecodeRules
    views: tuple[View, ...]
    renderings: tuple[Rendering, ...]
    seed: int
    """Of the random views: the cache's."""

    @property
    def row_bytes(self) -> int:
        """Rendered bytes of one view."""
        return sum(height * width * 3 for height, width in (r.size for r in self.renderings))

    @property
    def slot_bytes(self) -> int:
        """Rendered bytes of an image with all its views."""
        return self.row_bytes * len(self.views)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rules": self.rules.to_dict(),
            "views": [view.to_dict() for view in self.views],
            "renderings": [[*r.size, r.interpolation] for r in self.renderings],
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        return cls(
            rules=DecodeRules.from_dict(record["rules"]),
            views=tuple(View.from_dict(view) for view in record["views"]),
            renderings=tuple(Rendering((h, w), how) for h, w, how in record["renderings"]),
            seed=record["seed"],
        )


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The views of one image, or why it is rejected."""

    sha256: str
    """Of the encoded bytes."""
    size: tuple[int, int] | None = None
    """(width, height) of the upright image."""
    boxes: tuple[Box, ...] = ()
    """One per view asked for."""
    pixels: tuple[tuple[NDArray[np.uint8], ...], ...] = ()
    """Per view, one array (height, width, 3) per rendering."""
    reason: str | None = None


def decode_image(
    data: bytes, image_id: str, numbers: Sequence[int], setup: DecodeSetup
) -> DecodedImage:
    """Decode once, render the views ``numbers`` for every input."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode(data, setup.rules)
        places = [
            setup.views[number].place(image.size, seed=setup.seed, image_id=image_id, number=number)
            for number in numbers
        ]
        pixels = tuple(tuple(render(image, place, r) for r in setup.renderings) for place in places)
    except Reject as reject:
        return DecodedImage(sha256, reason=str(reject))
    except MemoryError:
        return DecodedImage(sha256, reason="decoding ran out of memory")
    return DecodedImage(sha256, image.size, tuple(place.box for place in places), pixels)
