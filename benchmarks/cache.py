"""How fast the cache is, as ratios within one run against the plainest code that does the same.

    python benchmarks/cache.py --folder /big/disk [--rows 5632] [--out results.md]

* shuffled batches, page cache warm: against ``np.take`` of a memmap, against the bare ``preadv``
  calls that any reader of files needs, and against zarr's own oindex
* block order, page cache cold: against reading the same files from end to end; webdataset and
  litdata on the same rows where they are installed, with the label entropy of each order
* writing to tmpfs: against a plain copy and write of the same bytes; and to the disk with fsync
* anonymous memory after many batches

Rows are 256 x 768 float16, the patches of a ViT-B/16 at 256 pixels. Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.cache.order import epoch_rows, label_entropy
from phistill.cache.publish import fsync_folder, write_all
from phistill.cache.readahead import ReadAhead
from phistill.cache.shard import CRC_BYTES, encode_shard, sha256_of

TOKENS, WIDTH, SHARD_ROWS, BATCH = 256, 768, 256, 128
ROW_BYTES = TOKENS * WIDTH * 2
NUM_LABELS = 100
WINDOW = 4
"""Shards of a window of the block order: few, since the benchmark's cache has few."""


def make_cache(path: Path, num_rows: int) -> Cache:
    """A finished cache of random features, one teacher, no pixels; labels in random order."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_LABELS, num_rows)
    index = pa.table(
        {
            "row": np.arange(num_rows),
            "id": [str(row) for row in range(num_rows)],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["none"] * num_rows,
            "offset": np.arange(num_rows),
            "length": np.full(num_rows, -1),
            "label": [str(label) for label in labels],
        }
    )
    info = CacheInfo(
        seed=0,
        shard_rows=SHARD_ROWS,
        holdout=0.0,
        pixel_size=0,
        views=({"kind": "resize"},),
        decode={},
    )
    cache = store.create(path, info, index)
    cache.add_teacher(TeacherInfo(name="t", grid=(16, 16), widths={"patches": WIDTH}))
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        values = generator.standard_normal((stop - start, TOKENS, WIDTH), np.float32)
        digests = tuple(hashlib.sha256(str(r).encode()).hexdigest() for r in range(start, stop))
        facts = ImageFacts(sha256=digests, size=(None,) * len(digests), box=(None,) * len(digests))
        cache.commit_shard(
            "t",
            shard,
            {"patches": values.astype(np.float16)},
            images=facts,
            reasons={},
            environment={},
        )
    return cache


def seconds(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def alternating(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times of each action, taken in turns so that a slow minute of the machine hits all."""
    for action in actions.values():
        action()
    return {
        name: [times[name] for times in rows]
        for rows in [[{n: seconds(a) for n, a in actions.items()} for _ in range(rounds)]]
        for name in actions
    }


def shuffled_reads(cache: Cache, folder: Path) -> Iterator[str]:
    """Batches of random rows: ours, checked and unchecked, against take from a memmap."""
    num_rows = cache.num_rows
    plain = folder / "plain.bin"
    reader = cache.reader("t", "patches")
    flat = np.memmap(plain, np.float16, "w+", shape=(num_rows, TOKENS, WIDTH))
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        flat[start:stop] = reader.read_shard(shard)
    flat.flush()
    memmap = np.memmap(plain, np.float16, "r", shape=(num_rows, TOKENS, WIDTH))
    generator = np.random.default_rng(1)
    batches = [np.sort(generator.choice(num_rows, BATCH, False)) for _ in range(40)]
    for batch in batches:
        generator.shuffle(batch)
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)
    flat_out = out.reshape(BATCH, -1).view(np.uint8)
    home = cache.path / "teachers/t/patches/c"
    opened = [os.open(home / f"{shard}/0/0", os.O_RDONLY) for shard in cache.info.shards()]

    def bare(batch: np.ndarray[Any, Any]) -> None:
        for place, row in enumerate(batch.tolist()):
            shard, slot = divmod(row, SHARD_ROWS)
            os.preadv(opened[shard], [flat_out[place].data], slot * (ROW_BYTES + CRC_BYTES))

    array: Any = zarr.open_array(cache.path / "teachers/t/patches", mode="r")
    found = alternating(
        {
            "take": lambda: [np.take(memmap, b, axis=0, out=out, mode="clip") for b in batches],
            "bare": lambda: [bare(b) for b in batches],
            "unchecked": lambda: [reader.read(b, out, check=False) for b in batches],
            "checked": lambda: [reader.read(b, out) for b in batches],
        },
        rounds=15,
    )
    few = batches[:2]
    oindex = seconds(lambda: [array.oindex[b] for b in few]) / len(few) * len(batches)
    rate = {k: len(batches) * BATCH * ROW_BYTES / statistics.median(v) for k, v in found.items()}
    yield f"| np.take from a memmap | {rate['take'] / 1e9:.2f} GB/s | 1 |"
    titles = {
        "bare": "bare preadv calls for the same rows",
        "unchecked": "phistill, unchecked",
        "checked": "phistill, checked",
    }
    for name, title in titles.items():
        ratios = [a / b for a, b in zip(found["take"], found[name], strict=True)]
        yield (
            f"| {title} | {rate[name] / 1e9:.2f} GB/s | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    faster = oindex / statistics.median(found["checked"])
    yield (
        f"| zarr {zarr.__version__} oindex | {rate['checked'] / faster / 1e9:.3f} GB/s | "
        f"phistill checked is {faster:.0f}x faster |"
    )
    for descriptor in opened:
        os.close(descriptor)
    plain.unlink()


def drop_page_cache(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cold_reads(cache: Cache, folder: Path) -> Iterator[str]:
    """One epoch in block order from a cold cache, against reading the files sequentially."""
    paths = sorted((cache.path / "teachers/t/patches/c").rglob("0"), key=str)
    paths = [path for path in paths if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in paths)
    rows = cache.rows()
    labels = np.array(cache.index()["label"].to_pylist()).astype(np.int64)
    order = epoch_rows(
        rows, seed=0, epoch=0, mode="block", shard_rows=SHARD_ROWS, window_shards=WINDOW
    )
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)

    def sequential() -> None:
        buffer = bytearray(8 * 2**20)
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def block() -> None:
        reader = cache.reader("t", "patches")
        with ReadAhead([reader], shard_rows=SHARD_ROWS, window_shards=WINDOW) as ahead:
            for start in range(0, len(order) - BATCH + 1, BATCH):
                ahead.expect(order[start : start + BATCH])
                ahead.expect(order[start + WINDOW * SHARD_ROWS :][:BATCH])
                reader.read(order[start : start + BATCH], out)

    ratios, rates = [], []
    for _ in range(5):
        drop_page_cache(paths)
        plain = seconds(sequential)
        drop_page_cache(paths)
        ours = seconds(block)
        ratios.append(plain / ours)
        rates.append(num_bytes / ours)
    entropy = label_entropy(labels[order], BATCH)
    uniform = label_entropy(labels[epoch_rows(rows, seed=0, epoch=0)], BATCH)
    yield (
        f"| block order, cold | {statistics.median(rates) / 1e9:.2f} GB/s | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
        f"label entropy {entropy / uniform:.4f} of uniform |"
    )
    yield from _webdataset(cache, folder, labels, uniform)
    yield from _litdata(cache, folder, labels, uniform)


def _webdataset(
    cache: Cache, folder: Path, labels: np.ndarray[Any, Any], uniform: float
) -> Iterator[str]:
    try:
        import tarfile

        import webdataset
    except ImportError:
        yield "| webdataset | not installed | | |"
        return
    reader = cache.reader("t", "patches")
    tars = []
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        path = folder / f"{shard:05d}.tar"
        values = reader.read_shard(shard)
        with tarfile.open(path, "w") as tar:
            for row in range(start, stop):
                sink = io.BytesIO()
                np.save(sink, values[row - start])
                for suffix, data in (("npy", sink.getvalue()), ("cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(f"{row:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        tars.append(path)
    drop_page_cache(tars)
    seen: list[int] = []
    dataset = (
        webdataset.WebDataset([str(path) for path in tars], shardshuffle=100, empty_check=False)
        .shuffle(WINDOW * SHARD_ROWS)
        .decode()
        .to_tuple("npy", "cls")
        .batched(BATCH)
    )
    begun = time.perf_counter()
    num_rows = 0
    for batch, classes in dataset:
        num_rows += len(batch)
        seen += [int(label) for label in classes]
    rate = num_rows * ROW_BYTES / (time.perf_counter() - begun)
    entropy = label_entropy(np.array(seen), BATCH)
    yield (
        f"| webdataset {webdataset.__version__}, tar of npy, cold | {rate / 1e9:.2f} GB/s | | "
        f"label entropy {entropy / uniform:.4f} of uniform |"
    )
    for path in tars:
        path.unlink()


def _litdata(
    cache: Cache, folder: Path, labels: np.ndarray[Any, Any], uniform: float
) -> Iterator[str]:
    try:
        import litdata
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        yield "| litdata | not installed | | |"
        return
    reader = cache.reader("t", "patches")
    home = folder / "litdata"
    writer = BinaryWriter(str(home), chunk_size=SHARD_ROWS)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        values = reader.read_shard(shard)
        for row in range(start, stop):
            writer[row] = {"patches": values[row - start], "label": int(labels[row])}
    writer.done()
    writer.merge()
    drop_page_cache([path for path in home.iterdir() if path.suffix == ".bin"])
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
    entropy = label_entropy(np.array(seen), BATCH)
    yield (
        f"| litdata {litdata.__version__}, cold | {rate / 1e9:.2f} GB/s | | "
        f"label entropy {entropy / uniform:.4f} of uniform |"
    )
    shutil.rmtree(home)


def writes(disk: Path) -> Iterator[str]:
    """Encoding and writing a shard against copying and writing the same bytes."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((SHARD_ROWS, TOKENS, WIDTH), np.float32).astype(np.float16)

    def plain(path: Path, sync: bool) -> None:
        copy = values.copy()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write_all(descriptor, [memoryview(copy.reshape(-1).view(np.uint8))])
        if sync:
            os.fsync(descriptor)
        os.close(descriptor)
        if sync:
            fsync_folder(path.parent)

    def ours(path: Path, sync: bool, digest: bool) -> None:
        encoded = encode_shard(values, SHARD_ROWS)
        with ThreadPoolExecutor(1) as hashing:
            if digest:
                hashing.submit(sha256_of, encoded)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            write_all(descriptor, encoded)
            if sync:
                os.fsync(descriptor)
            os.close(descriptor)
            if sync:
                fsync_folder(path.parent)

    for name, folder, sync in (("tmpfs", Path("/dev", "shm"), False), ("disk, fsync", disk, True)):
        path = folder / f"phistill-benchmark-{os.getpid()}"
        found = alternating(
            {
                "plain": lambda p=path, s=sync: plain(p, s),
                "ours": lambda p=path, s=sync: ours(p, s, False),
                "with sha256": lambda p=path, s=sync: ours(p, s, True),
            },
            rounds=15,
        )
        path.unlink()
        titles = {"ours": "encode and write", "with sha256": "the same, sha256 beside it"}
        for who in titles:
            ratios = [a / b for a, b in zip(found["plain"], found[who], strict=True)]
            rate = values.nbytes / statistics.median(found[who]) / 1e9
            yield (
                f"| {name}: {titles[who]} | {rate:.2f} GB/s | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


def memory(cache: Cache) -> Iterator[str]:
    """Anonymous memory after one epoch of batches and after fifty times as many."""
    reader = cache.reader("t", "patches")
    generator = np.random.default_rng(2)
    out = np.empty((BATCH, TOKENS, WIDTH), np.float16)

    def batches(count: int) -> float:
        for _ in range(count):
            reader.read(generator.integers(0, cache.num_rows, BATCH), out)
        status = Path("/proc/self/status").read_text()
        return float(status.split("RssAnon:")[1].split()[0]) / 1024

    few = batches(20)
    descriptors = len(os.listdir("/proc/self/fd"))
    many = batches(1000)
    yield f"| RssAnon after 20 and 1,020 batches | {few:.1f} and {many:.1f} MiB |"
    yield f"| open files | {descriptors} and {len(os.listdir('/proc/self/fd'))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the cache is made (default: temporary)")
    parser.add_argument("--rows", type=int, default=5632)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="phistill-", dir=options.folder))
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}, zarr {zarr.__version__}; {options.rows} rows of {TOKENS} x "
        f"{WIDTH} float16 ({options.rows * ROW_BYTES / 1e9:.1f} GB), load {os.getloadavg()[0]:.1f}"
    ]
    try:
        cache = make_cache(folder / "c", options.rows)
        sections: dict[str, Callable[[], Iterator[str]]] = {
            "Shuffled batches, page cache warm, one thread": lambda: shuffled_reads(cache, folder),
            "Memory": lambda: memory(cache),
            "Cold page cache": lambda: cold_reads(cache, folder),
            "Writing a 101 MB shard": lambda: writes(folder),
        }
        for title, section in sections.items():
            lines += ["", f"## {title}", "", *section()]
            print("\n".join(lines[-8:]), flush=True)
    finally:
        shutil.rmtree(folder)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
