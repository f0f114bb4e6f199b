"""Caches of random features and pixels: their sizes are real, their content is not."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo

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
    from phistill.stats import fit_stats  # not loaded where the cache alone is measured

    with tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder:
        cache = write_cache(
            Path(folder) / "bench.cache", teachers, num_rows, pixel_size, shard_rows
        )
        fit_stats(cache, max_images=64)
        warm(cache)
        yield cache


def write_cache(
    path: Path,
    teachers: Sequence[TeacherInfo],
    num_rows: int,
    pixel_size: int,
    shard_rows: int,
    **columns: Sequence[Any],
) -> Cache:
    """Standard normal features and, if asked for, random pixels, every row for training."""
    cache = empty_cache(path, num_rows, pixel_size, shard_rows, **columns)
    for teacher in teachers:
        cache.add_teacher(teacher)
    generator = np.random.default_rng(0)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        num = stop - start
        if pixel_size:
            pixels = generator.integers(0, 256, (num, pixel_size, pixel_size, 3), np.uint8)
            commit(cache, "pixels", shard, {"pixels": pixels})
        for teacher in teachers:
            arrays = {
                kind: generator.standard_normal((num, *teacher.row_shape(kind)), np.float32).astype(
                    np.float32 if kind == "summary" else np.float16
                )
                for kind in teacher.kinds
            }
            commit(cache, teacher.name, shard, arrays)
    return cache


def empty_cache(
    path: Path, num_rows: int, pixel_size: int, shard_rows: int, **columns: Sequence[Any]
) -> Cache:
    """An index and no teacher; ``columns`` are further ones of the index."""
    info = CacheInfo(
        seed=0,
        shard_rows=shard_rows,
        holdout=0.0,
        pixel_size=pixel_size,
        views=({"kind": "resize"},),
        decode={},
    )
    return store.create(path, info, index_of(0, num_rows, **columns))


def index_of(start: int, num_rows: int, **columns: Sequence[Any]) -> pa.Table:
    """The index of rows ``start`` and on: invented images that lie nowhere."""
    rows = np.arange(start, start + num_rows)
    return pa.table(
        {
            "row": rows,
            "id": [f"{row:08d}" for row in rows],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["none"] * num_rows,
            "offset": rows,
            "length": np.full(num_rows, -1),
            **columns,
        }
    )


def commit(cache: Cache, owner: str, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Commit a shard without rejects; an image's sha256 is that of its row's number."""
    start, stop = cache.info.shard_range(shard)
    num, side = stop - start, max(cache.info.pixel_size, 1)
    names = (hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, stop))
    images = ImageFacts.of(
        sha256=tuple(names), size=((side, side),) * num, box=((0, 0, side, side),) * num
    )
    cache.commit_shard(owner, shard, dict(arrays), images=images, reasons={}, environment={})


def warm(cache: Cache) -> None:
    """Read every file once, so that what is timed next comes from the page cache."""
    for path in cache.path.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass
