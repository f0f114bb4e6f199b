"""Small pictures for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def coloured_squares(folder: Path, num: int) -> Path:
    """A new folder with ``num`` pictures of 32 x 32 pixels: sixteen squares of random colours."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(num):
        squares = generator.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(squares).save(folder / f"{number:02d}.png")
    return folder
