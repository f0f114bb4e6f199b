"""Random orders of images that lie in parts (tars, row groups) which are read as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def windowed(
    generator: np.random.Generator,
    part: NDArray[np.integer],
    sizes: NDArray[np.int64],
    window: int,
) -> NDArray[np.int64]:
    """Positions (n,) of images that lie in ``part`` (n,), a number below p.

    The parts come in random order, in windows of as many as have ``sizes`` (p,) of ``window``
    together, or of one that is larger; the images of a window are permuted.
    """
    turns = np.zeros(len(sizes), np.int64)
    turn, filled = 0, 0
    for number in generator.permutation(len(sizes)).tolist():
        if filled and filled + sizes[number] > window:
            turn, filled = turn + 1, 0
        turns[number] = turn
        filled += int(sizes[number])
    return np.lexsort((generator.permutation(len(part)), turns[part])).astype(np.int64)
