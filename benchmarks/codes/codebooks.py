"""Makes cache/codes/codebooks.safetensors: k-means of normal vectors, for codes of 1 to 4 bits.

    python benchmarks/codes/codebooks.py

Lloyd's rounds on fixed samples, from a fixed seed; what a codebook leaves is measured on others.
The file is part of the format of codes: it is not made again unless the format changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phistill.cache.codes import levels
from phistill.cache.format import tensor_file

NUM_SAMPLES = 400_000
NUM_ROUNDS = 60
NUM_MEASURED = 2_000_000
BLOCK = 16_384

STEP = 2.0**-11
"""Points are rounded to it, a multiple of LEVEL_STEP."""


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    half = np.square(centres).sum(axis=1) / 2
    parts = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    return np.concatenate([np.argmax(part @ centres.T - half, axis=1) for part in parts])


def k_means(dimension: int, num_centres: int) -> np.ndarray:
    random = np.random.default_rng(dimension * num_centres)
    x = random.standard_normal((NUM_SAMPLES, dimension), dtype=np.float32)
    centres = x[:num_centres] * 0.8
    for _ in range(NUM_ROUNDS):
        cell = nearest(x, centres)
        count = np.bincount(cell, minlength=num_centres)
        sums = np.stack([np.bincount(cell, x[:, i], num_centres) for i in range(dimension)], axis=1)
        centres = (sums / np.maximum(count, 1)[:, None]).astype(np.float32)
    return centres[np.lexsort(centres.T)]


def main() -> None:
    books, left = {}, {}
    for bits, dimension in levels.DIMENSIONS.items():
        centres = k_means(dimension, 2 ** (bits * dimension))
        whole = (np.rint(centres / STEP) * (STEP / levels.LEVEL_STEP)).astype(np.int32)
        x = np.random.default_rng(1).standard_normal(
            (NUM_MEASURED // dimension, dimension), dtype=np.float32
        )
        book = (whole * levels.LEVEL_STEP).astype(np.float32)
        books[f"codebook{bits}"] = whole
        left[str(bits)] = round(float(np.mean(np.square(x - book[nearest(x, book)]))), 5)
        print(f"{bits} bits, {dimension} at once: {left[str(bits)]}", flush=True)
    path = Path(levels.__file__).with_name(levels.CODEBOOKS)
    path.write_bytes(tensor_file.encode(books, {"distortion": left}))


if __name__ == "__main__":
    main()
