"""Numbers of points to bytes and back: one after the other in a string of bits, lowest bit first.

A point of k coefficients at b bits each is b k bits; bit i of the string is bit i % 8 of byte
i // 8. Eight coefficients are b bytes: one int64, from 9 bits on two of four coefficients. Reading
takes several points at once where they have at most _LOOKUP_BITS bits together: one table then
gives all their values.

n rows, m coefficients of a band, b bits of each, k coefficients of a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as array_device
from jaxtyping import Float

from .levels import DIMENSIONS

_LOOKUP_BITS = 12

_WORD_BITS = 8
"""Of a coefficient: eight of more do not fit an int64."""


def pack(points: Any, bits: int) -> Any:
    """Numbers of points, (n, m / k), below 2^(b k), to uint8 (n, b m / 8); 8 divides m."""
    xp = array_namespace(points)
    k = DIMENSIONS.get(bits, 1)
    width = bits * k
    if width == 8:
        return points
    groups = xp.astype(xp.reshape(points, (points.shape[0], -1, 8 // k)), xp.int64)
    if bits <= _WORD_BITS:
        octets = _octets(xp, _joined(xp, groups, width), bits)
    else:
        low, high = (_joined(xp, half, width) for half in (groups[..., :4], groups[..., 4:]))
        first, more = divmod(4 * bits, 8)
        high = (high << more) | (low >> 8 * first)
        octets = xp.concat([_octets(xp, low, first), _octets(xp, high, bits - first)], axis=-1)
    return xp.reshape(octets, (points.shape[0], -1))


def _joined(xp: Any, parts: Any, width: int) -> Any:
    """One word (n, g) of int64 (n, g, parts), the first lowest."""
    word = parts[..., 0]
    for i in range(1, parts.shape[-1]):
        word = word | (parts[..., i] << (i * width))
    return word


def _octets(xp: Any, word: Any, count: int) -> Any:
    """The lowest bytes of words: little-endian, as every host is."""
    return xp.reshape(word.view(xp.uint8), (*word.shape, 8))[..., :count]


def at_once(bits: int) -> int:
    """Coefficients that one of `numbers` stands for: 8, 4, 4, 2, 2, 2 for 1 to 6 bits, then 1."""
    return max(k for k in (1, 2, 4, 8) if k == 1 or k * bits <= _LOOKUP_BITS)


def numbers(data: Any, bits: int) -> Any:
    """uint8 (n, b m / 8) to int32 (n, m / at_once(b)), each of one point or of several."""
    xp = array_namespace(data)
    width = bits * at_once(bits)
    if width == 8:
        return xp.astype(data, xp.int32)
    if bits <= _WORD_BITS:
        whole = math.lcm(width, 8) // 8
        groups = xp.reshape(data, (data.shape[0], -1, whole))
        found = _parted(xp, groups, width, range(0, 8 * whole, width))
    else:
        groups = xp.reshape(data, (data.shape[0], -1, bits))
        first, more = divmod(4 * bits, 8)
        half = range(0, 4 * bits, bits)
        low = _parted(xp, groups[..., : bits - first], width, half)
        high = _parted(xp, groups[..., first:], width, [more + shift for shift in half])
        found = xp.concat([low, high], axis=-1)
    return xp.astype(xp.reshape(found, (data.shape[0], -1)), xp.int32)


def _parted(xp: Any, octets: Any, width: int, firsts: Sequence[int]) -> Any:
    """The numbers of ``width`` bits that begin at these bits of bytes (n, g, at most 8)."""
    num, device = octets.shape[-1], array_device(octets)
    size, kind = (4, xp.int32) if num < 4 else (8, xp.int64)
    word = xp.zeros((*octets.shape[:-1], size), dtype=xp.uint8, device=device)
    word[..., :num] = octets
    shifts = xp.asarray(list(firsts), dtype=kind, device=device)
    return (word.view(kind) >> shifts) & (2**width - 1)


def lookup(codebook: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "numbers q"]:
    """The q = at_once(b) values that every one of `numbers` stands for, of points (2^(b k), k)."""
    num_points, k = codebook.shape
    width = num_points.bit_length() - 1
    together = at_once(width // k) // k
    joined = np.arange(num_points**together)[:, None] >> (width * np.arange(together))
    return codebook[joined & (num_points - 1)].reshape(-1, k * together)
