"""Colours by their profile: what is stored in a wide gamut becomes sRGB, as teachers know pictures.

Ignoring a Display P3 profile changes features more than JPEG at quality 75 does (docs/log.md).
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
"""Camera profiles with tables have 1 MB; larger ones are ignored."""
MAX_DIFFERENCE = 3
"""Of a profile that counts as sRGB, in levels of 255: the many versions of sRGB differ by less, and
rounding them all would change pictures for nothing."""
GRID = 9
"""Levels of each channel at which a profile is compared with sRGB."""
MODES = ("RGB", "RGBA")


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB when it carries an RGB profile of something else; else as it is.

    Relative colorimetric with black point compensation; what lies outside of sRGB is clipped. A
    profile that cannot be read, or is not for RGB, is ignored.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE_BYTES:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode not in MODES:
        return image
    transform = _transform(profile, image.mode)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What maps a profile's numbers to sRGB; None where that changes next to nothing, or where the
    profile is none."""
    try:
        transform, probe = (
            ImageCms.buildTransform(
                ImageCms.getOpenProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                mode,
                mode,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            for mode in (mode, "RGB")
        )
        before = _grid()
        after = np.asarray(ImageCms.applyTransform(Image.fromarray(before), probe))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    difference = np.abs(after.astype(np.int16) - before)
    return transform if difference.max() > MAX_DIFFERENCE else None


def _grid() -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Colours all over the cube, as an image (GRID, GRID^2, 3)."""
    levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(GRID, GRID * GRID, 3)
