"""Codes of b bits to bytes and back: code j of a band is bits j b to (j + 1) b of a string of bits,
lowest bit first, whose bit k is bit k % 8 of byte k // 8.

Eight codes are b bytes. A lookup reads several codes at once: as many as have a number of at most
_LOOKUP_BITS bits together.

n rows, m codes of a band, b bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

_LOOKUP_BITS = 12


def pack(codes: Any, bits: int) -> Any:
    """uint8 (n, m), below 2^bits, m a multiple of 8, to uint8 (n, b m / 8)."""
    xp = array_namespace(codes)
    eight = xp.astype(xp.reshape(codes, (codes.shape[0], -1, 8)), xp.int64)
    word = eight[..., 0]
    for k in range(1, 8):
        word = word | (eight[..., k] << (k * bits))
    octets = xp.reshape(word.view(xp.uint8), (*word.shape, 8))  # little-endian, as every host is
    return xp.reshape(octets[..., :bits], (codes.shape[0], -1))


def codes_per_number(bits: int) -> int:
    """Codes that `numbers` gives together: 8, 4, 4, 2, 2, 2, 1, 1 for 1 to 8 bits."""
    return max(k for k in (1, 2, 4, 8) if k == 1 or k * bits <= _LOOKUP_BITS)


def numbers(data: Any, bits: int) -> Any:
    """uint8 (n, b m / 8) to int32 (n, m / k): k = codes_per_number(bits) codes each."""
    xp = array_namespace(data)
    width = bits * codes_per_number(bits)
    if width == 8:
        return xp.astype(data, xp.int32)
    groups = xp.astype(xp.reshape(data, (data.shape[0], -1, bits)), xp.int32)
    parts = []
    for start in range(0, 8 * bits, width):
        first, shift = divmod(start, 8)
        number = groups[..., first] >> shift
        for i in range(1, (shift + width + 7) // 8):
            number = number | (groups[..., first + i] << (8 * i - shift))
        parts.append(number & (2**width - 1))
    return xp.reshape(xp.stack(parts, axis=-1), (data.shape[0], -1))


def lookup(values: Float[np.ndarray, " levels"]) -> Float[np.ndarray, "numbers k"]:
    """The values of the k codes of every number that `numbers` can give, for 2^b values."""
    bits = len(values).bit_length() - 1
    k = codes_per_number(bits)
    codes = np.arange(2 ** (bits * k))[:, None] >> (bits * np.arange(k)) & (2**bits - 1)
    return values[codes]
