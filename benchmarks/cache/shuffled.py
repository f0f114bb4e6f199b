"""Batches of random rows from a warm page cache: their speed and the memory they leave."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from machine import anonymous_mb
from measuring import in_turns, ratios, seconds, spread
from rows import BATCH, ROW_BYTES, SHARD_ROWS, TOKENS, WIDTH, shard_files

from phistill.cache import Cache
from phistill.cache.format.shard import CRC_BYTES

Array = np.ndarray[Any, Any]
TITLES = {
    "bare": "bare preadv calls for the same rows",
    "ours": "phistill",
}


def shuffled_reads(cache: Cache, folder: Path) -> Iterator[str]:
    """Batches of random rows: ours against take from a memmap."""
    reader = cache.reader("t", "patches")
    batches = _batches(cache.num_rows)
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)
    with _memmap(cache, folder / "plain.bin") as memmap, _bare_reads(cache, out) as bare:
        found = in_turns(
            {
                "take": lambda: [np.take(memmap, b, axis=0, out=out, mode="clip") for b in batches],
                "bare": lambda: [bare(b) for b in batches],
                "ours": lambda: [reader.read(b, out) for b in batches],
            },
            rounds=15,
            unmeasured=1,
        )
    array: Any = zarr.open_array(cache.path / "teachers/t/patches", mode="r")
    few = batches[:2]
    oindex = seconds(lambda: [array.oindex[b] for b in few]) / len(few) * len(batches)
    rate = {k: len(batches) * BATCH * ROW_BYTES / statistics.median(v) for k, v in found.items()}
    yield f"| np.take from a memmap | {rate['take'] / 1e9:.2f} GB/s | 1 |"
    for name, title in TITLES.items():
        of_take = spread(ratios(found["take"], by=found[name]), ".2f")
        yield f"| {title} | {rate[name] / 1e9:.2f} GB/s | {of_take} |"
    faster = oindex / statistics.median(found["ours"])
    yield (
        f"| zarr {zarr.__version__} oindex | {rate['ours'] / faster / 1e9:.3f} GB/s | "
        f"phistill is {faster:.0f}x faster |"
    )


def _batches(num_rows: int) -> list[Array]:
    generator = np.random.default_rng(1)
    batches = [np.sort(generator.choice(num_rows, BATCH, False)) for _ in range(40)]
    for batch in batches:
        generator.shuffle(batch)
    return batches


@contextmanager
def _memmap(cache: Cache, path: Path) -> Iterator[Array]:
    """All rows in one file of their bytes and nothing else."""
    reader, shape = cache.reader("t", "patches"), (cache.num_rows, TOKENS, WIDTH)
    flat = np.memmap(path, np.float16, "w+", shape=shape)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        flat[start:stop] = reader.read(np.arange(start, stop))
    flat.flush()
    yield np.memmap(path, np.float16, "r", shape=shape)
    path.unlink()


@contextmanager
def _bare_reads(cache: Cache, out: Array) -> Iterator[Callable[[Array], None]]:
    """A function that reads the rows of a batch into ``out``, a system call each."""
    flat = out.reshape(BATCH, -1).view(np.uint8)
    with ExitStack() as stack:
        opened = [os.open(path, os.O_RDONLY) for path in shard_files(cache)]
        for descriptor in opened:
            stack.callback(os.close, descriptor)

        def read(batch: Array) -> None:
            for place, row in enumerate(batch.tolist()):
                shard, slot = divmod(row, SHARD_ROWS)
                os.preadv(opened[shard], [flat[place].data], slot * (ROW_BYTES + CRC_BYTES))

        yield read


def memory(cache: Cache) -> Iterator[str]:
    """Anonymous memory after one epoch of batches and after fifty times as many."""
    reader = cache.reader("t", "patches")
    generator = np.random.default_rng(2)
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)

    def batches(count: int) -> float:
        for _ in range(count):
            reader.read(generator.integers(0, cache.num_rows, BATCH), out)
        return anonymous_mb()

    few = batches(20)
    descriptors = len(os.listdir("/proc/self/fd"))
    many = batches(1000)
    yield f"| RssAnon after 20 and 1,020 batches | {few:.1f} and {many:.1f} MiB |"
    yield f"| open files | {descriptors} and {len(os.listdir('/proc/self/fd'))} |"
