"""Angular dispersion of summary vectors, for the balanced angle loss of C-RADIOv4.

m = E[y] / |E[y]|, dispersion = E[arccos(cos(y, m))^2] (arXiv:2601.17237). m is known only when the
moments are, so this reads the summaries once more; they are one vector per image.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from phistill.cache import ArrayReader

BLOCK_ROWS = 4096


def squared_angles(
    y: Float[np.ndarray, "b c"], mean: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " b"]:
    """arccos(cos(y, mean))^2, float64; a zero vector counts as orthogonal."""
    wide = y.astype(np.float64)
    length = np.linalg.norm(wide, axis=1) * np.linalg.norm(mean)
    cosine = wide @ mean / np.where(length > 0, length, 1.0)
    return np.square(np.arccos(np.clip(cosine, -1.0, 1.0)))


def dispersion(
    reader: ArrayReader, rows: Int[np.ndarray, " n"], mean: Float[np.ndarray, " c"]
) -> float:
    """The mean squared angle between the summaries of `rows` and their mean direction."""
    total = 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        block = reader.read(rows[start : start + BLOCK_ROWS])
        total += float(np.sum(squared_angles(block, mean)))
    return total / len(rows)
