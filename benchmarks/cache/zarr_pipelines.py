"""Our reader against zarr's own ways of reading the same files: its codec pipelines, with ranges
read together (coalesced) over gaps of up to 1 MiB, its default, or where they touch; zarr 3.4 on.
zarr makes a new array of every batch; ours is read into one that is there.

    python benchmarks/cache/run.py --only "zarr's pipelines" --folder /big/disk
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measuring import in_turns, ratios, spread
from rows import BATCH, ROW_BYTES, TOKENS, WIDTH

from phistill.cache import Cache

PIPELINES = {"batched": "BatchedCodecPipeline", "fused": "FusedCodecPipeline"}
NUM_BATCHES = 4


def zarr_pipelines(cache: Cache, _: Path) -> Iterator[str]:
    """Random rows, and rows that follow one another, from a warm page cache."""
    if not hasattr(zarr.core.codec_pipeline, PIPELINES["fused"]):
        yield f"zarr {zarr.__version__} has no fused pipeline: take 3.4 or newer."
        return
    generator = np.random.default_rng(1)
    last = cache.num_rows - BATCH
    orders = {
        "random rows": [
            np.sort(generator.choice(cache.num_rows, BATCH, False)) for _ in range(NUM_BATCHES)
        ],
        "rows that follow one another": [
            np.arange(start, start + BATCH) for start in generator.integers(0, last, NUM_BATCHES)
        ],
    }
    yield "| rows | reader | median | phistill is faster by |"
    yield "|---|---|---|---|"
    for order, batches in orders.items():
        found = in_turns(_readers(cache, batches), rounds=5, unmeasured=1)
        for name, seconds in found.items():
            rate = NUM_BATCHES * BATCH * ROW_BYTES / statistics.median(seconds) / 1e9
            faster = spread(ratios(seconds, by=found["phistill"]), ".1f")
            yield f"| {order} | {name} | {rate:.2f} GB/s | {faster} |"


def _readers(cache: Cache, batches: list[Any]) -> dict[str, Callable[[], Any]]:
    """One way each of reading all batches, sure to give the same bytes."""
    reader, out = cache.reader("t", "patches"), np.empty((BATCH, TOKENS, WIDTH), np.float16)
    readers: dict[str, Callable[[], Any]] = {
        "phistill": lambda: [reader.read(batch, out) for batch in batches]
    }
    for title, pipeline in PIPELINES.items():
        for words, gap in (("gaps to 1 MiB bridged", 2**20), ("no gap bridged", 0)):
            with _settings(pipeline, gap):
                array: Any = zarr.open_array(cache.path / "teachers/t/patches", mode="r")
                same = np.array_equal(array.oindex[batches[0]], reader.read(batches[0]))
                assert same, f"{title} and phistill read different bytes"

            def read(array: Any = array, pipeline: str = pipeline, gap: int = gap) -> None:
                with _settings(pipeline, gap):
                    for batch in batches:
                        array.oindex[batch]

            readers[f"zarr {zarr.__version__}, {title}, {words}"] = read
    return readers


def _settings(pipeline: str, gap: int) -> AbstractContextManager[Any]:
    path = f"zarr.core.codec_pipeline.{pipeline}"
    return zarr.config.set(
        {"codec_pipeline.path": path, "array.sharding_coalesce_max_gap_bytes": gap}
    )
