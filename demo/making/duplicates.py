"""Finds drawings that look alike: a perceptual hash, and clusters joined by it.

Used twice: near-identical drawings are dropped, and looser clusters are never split between
training and held-out images. Legend: n drawings, b = 192 bits of a hash, k = 256 numbers of a
colour sketch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

CLUSTER_BITS = 10
"""Two drawings whose hashes differ in at most so many of 192 bits belong to one cluster."""

DUPLICATE_BITS = 6
DUPLICATE_COLOUR = 10.0
"""Two drawings are duplicates when they differ in at most DUPLICATE_BITS and the root mean square
of their colour sketches' difference is at most DUPLICATE_COLOUR (of 255)."""

FLAT = 3.0
"""Smallest grey difference that counts as a gradient: flat areas must not hash their noise."""


def on_grey(image: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """Composite RGBA over mid-grey and shrink to (width, height) by area; float64, 0 to 255."""
    base = Image.new("RGBA", image.size, (128, 128, 128, 255))
    base.alpha_composite(image)
    small = base.convert("RGB").resize(size, Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64)


def perceptual_hash(image: Image.Image) -> Bool[np.ndarray, " b"]:
    """64 bits of horizontal gradient, 64 of vertical gradient, 64 of alpha above one half."""
    luma = np.array([0.299, 0.587, 0.114])
    horizontal = on_grey(image, (9, 8)) @ luma
    vertical = on_grey(image, (8, 9)) @ luma
    alpha = image.getchannel("A").resize((8, 8), Image.Resampling.BOX)
    return np.concatenate(
        [
            (np.diff(horizontal, axis=1) > FLAT).ravel(),
            (np.diff(vertical, axis=0) > FLAT).ravel(),
            (np.asarray(alpha) > 127).ravel(),
        ]
    )


def colour_sketch(image: Image.Image) -> Float[np.ndarray, " k"]:
    """8 x 8 pixels over grey, with alpha: float64, 256 numbers from 0 to 255."""
    alpha = image.getchannel("A").resize((8, 8), Image.Resampling.BOX)
    pixels = on_grey(image, (8, 8)).reshape(-1, 3)
    return np.concatenate([pixels.ravel(), np.asarray(alpha, dtype=np.float64).ravel()])


def close_pairs(hashes: Bool[np.ndarray, "n b"], most_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs i < j whose hashes differ in at most `most_bits` bits, in ascending order."""
    signs = np.where(hashes, 1, -1).astype(np.float32)
    for i in range(len(hashes) - 1):
        distance = (hashes.shape[1] - signs[i + 1 :] @ signs[i]) / 2
        for j in np.flatnonzero(distance <= most_bits):
            yield i, i + 1 + int(j)


def clusters(n: int, pairs: Iterator[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """Number the connected components of n drawings, in the order of their first member."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    roots = [root(i) for i in range(n)]
    number = {r: k for k, r in enumerate(dict.fromkeys(roots))}
    return np.array([number[r] for r in roots], dtype=np.int64)


def duplicate_pairs(
    hashes: Bool[np.ndarray, "n b"], sketches: Float[np.ndarray, "n k"]
) -> Iterator[tuple[int, int]]:
    """Pairs that look the same in shape and colour."""
    for i, j in close_pairs(hashes, DUPLICATE_BITS):
        if np.sqrt(np.mean((sketches[i] - sketches[j]) ** 2)) <= DUPLICATE_COLOUR:
            yield i, j
