"""An epoch in block order from a cold page cache, beside that of other formats."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from formats import Epoch, litdata_epoch, webdataset_epoch
from measuring import ratios, seconds, spread
from rows import BATCH, SHARD_ROWS, TOKENS, WIDTH, WINDOW, drop_page_cache, shard_files

from phistill.cache import Cache
from phistill.cache.order import EpochOrder, label_entropy
from phistill.cache.readahead import ReadAhead
from phistill.cache.row_set import RowSet


def cold_reads(cache: Cache, folder: Path) -> Iterator[str]:
    """One epoch in block order from a cold cache, against reading the files sequentially."""
    rows, paths = RowSet(cache.rows()), shard_files(cache)
    num_bytes = sum(path.stat().st_size for path in paths)
    labels = np.array(cache.index()["label"].to_pylist()).astype(np.int64)
    order = EpochOrder(
        rows=rows, seed=0, epoch=0, mode="block", block_rows=SHARD_ROWS, window_blocks=WINDOW
    ).between(0, len(rows))
    full = EpochOrder(rows=rows, seed=0, epoch=0).between(0, len(rows))
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)
    sequential, block = [], []
    for _ in range(5):
        drop_page_cache(paths)
        sequential.append(seconds(lambda: _read_through(paths)))
        drop_page_cache(paths)
        block.append(seconds(lambda: _read_in_order(cache, order, out)))
    uniform = label_entropy(labels[full], BATCH)
    yield (
        f"| block order, cold | {num_bytes / statistics.median(block) / 1e9:.2f} GB/s | "
        f"{spread(ratios(sequential, by=block), '.2f')} | "
        f"label entropy {label_entropy(labels[order], BATCH) / uniform:.4f} of uniform |"
    )
    for name, epoch_of in (("webdataset", webdataset_epoch), ("litdata", litdata_epoch)):
        try:
            epoch: Epoch = epoch_of(cache, folder, labels)
        except ImportError:
            yield f"| {name} | not installed | | |"
            continue
        entropy = label_entropy(np.array(epoch.labels), BATCH)
        yield (
            f"| {epoch.title}, cold | {epoch.bytes_per_s / 1e9:.2f} GB/s | | "
            f"label entropy {entropy / uniform:.4f} of uniform |"
        )


def _read_through(paths: list[Path]) -> None:
    buffer = bytearray(8 * 2**20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _read_in_order(cache: Cache, order: np.ndarray, out: np.ndarray) -> None:
    reader = cache.reader("t", "patches")
    with ReadAhead([reader], block_rows=SHARD_ROWS, window_blocks=WINDOW) as ahead:
        for start in range(0, len(order) - BATCH + 1, BATCH):
            ahead.expect(order[start : start + BATCH])
            ahead.expect(order[start + WINDOW * SHARD_ROWS :][:BATCH])
            reader.read(order[start : start + BATCH], out)
