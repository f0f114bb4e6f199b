"""An epoch of the cache's rows from other formats, written and then read from a cold disk.

Each raises ImportError where its library is not installed.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rows import BATCH, ROW_BYTES, SHARD_ROWS, WINDOW, drop_page_cache

from phistill.cache import Cache


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over all rows gave."""

    title: str
    bytes_per_s: float
    labels: list[int]
    """In the order of the rows."""


def webdataset_epoch(cache: Cache, folder: Path, labels: np.ndarray) -> Epoch:
    """Tars of npy files, a tar per shard, shuffled in a buffer as large as our window."""
    import webdataset

    tars = [
        _write_tar(folder / f"{shard:05d}.tar", start, values, labels)
        for shard, (start, values) in enumerate(_shards(cache))
    ]
    drop_page_cache(tars)
    dataset = (
        webdataset.WebDataset([str(path) for path in tars], shardshuffle=100, empty_check=False)
        .shuffle(WINDOW * SHARD_ROWS)
        .decode()
        .to_tuple("npy", "cls")
        .batched(BATCH)
    )
    seen: list[int] = []
    begun = time.perf_counter()
    for _, classes in dataset:
        seen += [int(label) for label in classes]
    rate = len(seen) * ROW_BYTES / (time.perf_counter() - begun)
    for path in tars:
        path.unlink()
    return Epoch(f"webdataset {webdataset.__version__}, tar of npy", rate, seen)


def _write_tar(path: Path, start: int, values: np.ndarray, labels: np.ndarray) -> Path:
    with tarfile.open(path, "w") as tar:
        for row, features in enumerate(values, start):
            sink = io.BytesIO()
            np.save(sink, features)
            for suffix, data in (("npy", sink.getvalue()), ("cls", str(labels[row]).encode())):
                member = tarfile.TarInfo(f"{row:08d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def litdata_epoch(cache: Cache, folder: Path, labels: np.ndarray) -> Epoch:
    """Chunks of as many rows as a shard has, shuffled by litdata, put together to batches."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    home = folder / "litdata"
    writer = BinaryWriter(str(home), chunk_size=SHARD_ROWS)
    for start, values in _shards(cache):
        for row, features in enumerate(values, start):
            writer[row] = {"patches": features, "label": int(labels[row])}
    writer.done()
    writer.merge()
    drop_page_cache(path for path in home.iterdir() if path.suffix == ".bin")
    dataset = litdata.StreamingDataset(str(home), shuffle=True, seed=0)
    seen: list[int] = []
    begun = time.perf_counter()
    batch = []
    for item in dataset:
        batch.append(item["patches"])
        seen.append(item["label"])
        if len(batch) == BATCH:
            np.stack(batch)
            batch = []
    rate = len(seen) * ROW_BYTES / (time.perf_counter() - begun)
    shutil.rmtree(home)
    return Epoch(f"litdata {litdata.__version__}", rate, seen)


def _shards(cache: Cache) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each shard, and its values."""
    reader = cache.reader("t", "patches")
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        yield start, reader.read(np.arange(start, stop))
