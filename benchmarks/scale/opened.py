"""A row in full order out of few and out of thousands of shards."""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import numpy as np
from build import build

import phistill.cache as store

BATCH = 128
FEW, MANY = 40, 4000


def shards_section(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """CPU microseconds of one row of one array, by shards, row and limit of open files."""
    yield "| bytes of a row | open files | 40 shards, us a row | 4,000 shards | ratio |"
    yield "|---|---|---|---|---|"
    for width, few_rows, many_rows in ((1024, 1024, 8), (16384, 256, 2), (196608, 64, 1)):
        caches = {}
        for num_shards, shard_rows in ((FEW, few_rows), (MANY, many_rows)):
            path = folder / f"w{width}-{num_shards}.cache"
            build(
                path, num_shards * shard_rows, 1, shard_rows=shard_rows, pixel_size=0, width=width
            )
            caches[num_shards] = path
        for limit in (0, 1024):
            few, many = (
                float(
                    run(
                        [sys.executable, __file__, str(path), str(limit), str(options.rounds)],
                        capture_output=True,
                        text=True,
                        check=True,
                    ).stdout
                )
                for path in caches.values()
            )
            allowed = limit or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            yield (f"| {width * 2:,} | {allowed:,} | {few:.1f} | {many:.1f} | {many / few:.2f} |")


def row_us(path: str, limit: int, rounds: int) -> float:
    """CPU microseconds of a row of patches, median of rounds of 40 batches."""
    if limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    cache = store.open(path)
    reader = cache.reader("teacher0", "patches")
    generator = np.random.default_rng(0)
    out = np.empty((BATCH, *reader.row_shape), reader.dtype)
    everything = generator.permutation(cache.num_rows)
    for start in range(0, len(everything) - BATCH, BATCH):  # every shard looked through once
        reader.read(everything[start : start + BATCH], out)
    found = []
    for _ in range(3 * rounds):
        batches = [generator.integers(0, cache.num_rows, BATCH) for _ in range(40)]
        begun = time.process_time()
        for batch in batches:
            reader.read(batch, out)
        found.append((time.process_time() - begun) / 40 / BATCH * 1e6)
    return statistics.median(found)


if __name__ == "__main__":
    sys.stdout.write(f"{row_us(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))}\n")
