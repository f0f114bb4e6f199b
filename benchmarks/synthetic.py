"""Caches of random features and pixels: their sizes are real, their content is not."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.stats import fit_stats

WIDTHS = {"S": 384, "B": 768, "L": 1024}
"""Of ViT-S, B and L; at 224 pixels and patches of 14 each has 16 x 16 tokens."""

DEMO = (
    TeacherInfo(name="clip", grid=(6, 6), widths={"patches": 128, "summary": 128}),
    TeacherInfo(name="ssl", grid=(6, 6), widths={"patches": 160, "summary": 160}),
    TeacherInfo(name="mask", grid=(12, 12), widths={"patches": 188}),
)
"""The shapes of the bundled teachers."""


def vit_sized(letters: str) -> list[TeacherInfo]:
    """Teachers of ViT widths, one per letter."""
    return [
        TeacherInfo(
            name=f"vit-{letter}{number}".lower(),
            grid=(16, 16),
            widths={"patches": WIDTHS[letter], "summary": WIDTHS[letter]},
        )
        for number, letter in enumerate(letters)
    ]


@contextmanager
def synthetic_cache(
    teachers: Sequence[TeacherInfo], num_rows: int, pixel_size: int, shard_rows: int = 32
) -> Iterator[Cache]:
    """A cache of Gaussian features with statistics, read once."""
    with tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder:
        cache = write_cache(
            Path(folder) / "bench.cache", teachers, num_rows, pixel_size, shard_rows
        )
        fit_stats(cache, workers=1, max_images=64)
        for owner in cache.owners:
            for kind in cache.shapes(owner):
                for shard in cache.commits(owner):
                    cache.reader(owner, kind).read_shard(shard)
        yield cache


def write_cache(
    path: Path, teachers: Sequence[TeacherInfo], num_rows: int, pixel_size: int, shard_rows: int
) -> Cache:
    """Standard normal features and random pixels, every row for training."""
    fields: dict[str, Any] = {
        "seed": 0,
        "shard_rows": shard_rows,
        "holdout": 0.0,
        "pixel_size": pixel_size,
        "views": ({"kind": "resize"},),
        "decode": {},
    }
    index = pa.table(
        {
            "row": np.arange(num_rows),
            "id": [f"{row:08d}" for row in range(num_rows)],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["none"] * num_rows,
            "offset": np.arange(num_rows),
            "length": np.full(num_rows, -1),
        }
    )
    cache = store.create(path, CacheInfo(**fields), index)
    for teacher in teachers:
        cache.add_teacher(teacher)
    generator = np.random.default_rng(0)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        num = stop - start
        names = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, stop)]
        size = (pixel_size, pixel_size)
        images = ImageFacts(sha256=tuple(names), size=(size,) * num, box=((0, 0, *size),) * num)
        common: dict[str, Any] = {"images": images, "reasons": {}, "environment": {}}
        pixels = generator.integers(0, 256, (num, pixel_size, pixel_size, 3), np.uint8)
        cache.commit_shard("pixels", shard, {"pixels": pixels}, **common)
        for teacher in teachers:
            arrays = {
                kind: generator.standard_normal((num, *teacher.row_shape(kind)), np.float32).astype(
                    np.float32 if kind == "summary" else np.float16
                )
                for kind in teacher.kinds
            }
            cache.commit_shard(teacher.name, shard, arrays, **common)
    return cache
