"""Numbers of points to bytes and back: one after the other in a string of bits, lowest bit first.

A point of k coefficients at b bits each is b k bits; bit i of the string is bit i % 8 of byte
i // 8.
Eight coefficients are b bytes. Reading takes several points at once where they have at most
_LOOKUP_BITS bits together: one table then gives all their values.

n rows, m coefficients of a band, b bits of each, k coefficients of a point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as array_device
from jaxtyping import Float

from .levels import DIMENSIONS

_LOOKUP_BITS = 12


def pack(points: Any, bits: int) -> Any:
    """Numbers of points, uint8 (n, m / k), below 2^(b k), to uint8 (n, b m / 8); 8 divides m."""
    xp = array_namespace(points)
    k = DIMENSIONS.get(bits, 1)
    width = bits * k
    if width == 8:
        return points
    groups = xp.astype(xp.reshape(points, (points.shape[0], -1, 8 // k)), xp.int64)
    word = groups[..., 0]
    for i in range(1, 8 // k):
        word = word | (groups[..., i] << (i * width))
    octets = xp.reshape(word.view(xp.uint8), (*word.shape, 8))  # little-endian, as every host is
    return xp.reshape(octets[..., :bits], (points.shape[0], -1))


def at_once(bits: int) -> int:
    """Coefficients that one of `numbers` stands for: 8, 4, 4, 2, 2, 2, 1, 1 for 1 to 8 bits."""
    return max(k for k in (1, 2, 4, 8) if k == 1 or k * bits <= _LOOKUP_BITS)


def numbers(data: Any, bits: int) -> Any:
    """uint8 (n, b m / 8) to int32 (n, m / at_once(b)), each of one point or of several."""
    xp = array_namespace(data)
    width = bits * at_once(bits)
    if width == 8:
        return xp.astype(data, xp.int32)
    device = array_device(data)
    groups = xp.astype(xp.reshape(data, (data.shape[0], -1, bits)), xp.int64)
    octets = 8 * xp.arange(bits, dtype=xp.int64, device=device)
    word = xp.sum(groups << octets, axis=-1, keepdims=True, dtype=xp.int64)
    firsts = xp.arange(0, 8 * bits, width, dtype=xp.int64, device=device)
    found = (word >> firsts) & (2**width - 1)
    return xp.astype(xp.reshape(found, (data.shape[0], -1)), xp.int32)


def lookup(codebook: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "numbers q"]:
    """The q = at_once(b) values that every one of `numbers` stands for, of points (2^(b k), k)."""
    num_points, k = codebook.shape
    width = num_points.bit_length() - 1
    together = at_once(width // k) // k
    joined = np.arange(num_points**together)[:, None] >> (width * np.arange(together))
    return codebook[joined & (num_points - 1)].reshape(-1, k * together)
