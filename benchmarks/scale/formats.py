"""From nothing to the first shuffled batch: ours beside mosaic streaming, litdata and Lance.

    python benchmarks/scale/formats.py FOLDER ROWS [NAME ...]

A row is the same 64 bytes of features and a label in each; a batch has 128. Writing is not timed.
Each library reads in a process of its own: seconds and CPU seconds after its import, and anonymous
memory that came with it. Libraries that are not installed are left out, with a word.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import numpy as np
from machine import Peak, anonymous_mb

BATCH, WIDTH = 128, 32
CHUNK_ROWS = 65_536


def features(start: int, stop: int) -> np.ndarray:
    """Rows of float16 that tell their number."""
    return np.repeat(np.arange(start, stop)[:, None] % 2039, WIDTH, axis=1).astype(np.float16)


def write_mosaic(folder: Path, num_rows: int) -> None:
    from streaming import MDSWriter

    columns = {"features": f"ndarray:float16:{WIDTH}", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for row, values in enumerate(features(0, num_rows)):
            writer.write({"features": values, "label": row % 1000})


def read_mosaic(folder: Path) -> Callable[[], object]:
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    def work() -> object:
        dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        return next(iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)))

    return work


def write_litdata(folder: Path, num_rows: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for row, values in enumerate(features(0, num_rows)):
        writer[row] = {"features": values, "label": row % 1000}
    writer.done()
    writer.merge()


def read_litdata(folder: Path) -> Callable[[], object]:
    from litdata import StreamingDataLoader, StreamingDataset

    def work() -> object:
        dataset = StreamingDataset(str(folder), shuffle=True, seed=0)
        return next(iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)))

    return work


def write_lance(folder: Path, num_rows: int) -> None:
    import lance
    import pyarrow as pa

    def tables() -> object:
        for start in range(0, num_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, num_rows)
            values = pa.array(features(start, stop).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(values, WIDTH)
            labels = pa.array(np.arange(start, stop) % 1000)
            yield pa.record_batch([lists, labels], ["features", "label"])

    first = next(tables())
    lance.write_dataset(pa.RecordBatchReader.from_batches(first.schema, tables()), str(folder))


def read_lance(folder: Path) -> Callable[[], object]:
    import lance

    def work() -> object:
        """A permutation of all rows, and random access to a batch of it: what its sampler does."""
        dataset = lance.dataset(str(folder))
        order = np.random.default_rng(0).permutation(dataset.count_rows())
        return dataset.take(order[:BATCH].tolist()).to_pydict()

    return work


def write_ours(folder: Path, num_rows: int) -> None:
    from build import build

    build(folder, num_rows, 1, width=WIDTH, pixel_size=0)


def read_ours(folder: Path) -> Callable[[], object]:
    import zarr  # noqa: F401  what a cache loads on first use is loaded before, as the others' is

    from phistill.cache import open as open_cache
    from phistill.cache.order import EpochOrder
    from phistill.cache.row_set import RowSet

    def work() -> object:
        cache = open_cache(folder)
        rows = RowSet(cache.rows(None, "train"))
        order = EpochOrder(rows=rows, seed=0, epoch=0)
        return cache.reader("teacher0", "patches").read(order.between(0, BATCH))

    return work


FORMATS = {
    "phistill": ("phistill", write_ours, read_ours),
    "mosaic": ("mosaicml-streaming", write_mosaic, read_mosaic),
    "litdata": ("litdata", write_litdata, read_litdata),
    "lance": ("pylance", write_lance, read_lance),
}


def first_batch(name: str, folder: Path) -> dict[str, float]:
    """Seconds and memory in this process, which must be fresh."""
    work = FORMATS[name][2](folder)
    before = anonymous_mb()
    with Peak(0.002) as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return taken | {"megabytes": max(peak.megabytes, anonymous_mb()) - before}


def main() -> None:
    folder, num_rows, *names = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    write = sys.stdout.write
    write(f"{num_rows:,} rows of {2 * WIDTH} bytes and a label; medians of 3.\n\n")
    write("| library | s to the first shuffled batch | CPU s | MiB | written in, s |\n")
    write("|---|---|---|---|---|\n")
    for name in names or FORMATS:
        package, writer, _ = FORMATS[name]
        try:
            version = importlib.metadata.version(package)
            begun = time.perf_counter()
            writer(folder / name, num_rows)
        except ImportError as error:  # PackageNotFoundError is one
            write(f"| {package} | not installed ({error}) | | | |\n")
            continue
        written = time.perf_counter() - begun
        code = f"import formats, json; print(json.dumps(formats.first_batch({name!r}, "
        code += f"formats.Path({str(folder / name)!r}))))"
        found = []
        for _ in range(3):
            ended = subprocess.run(
                [sys.executable, "-c", code],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=False,
            )
            if ended.returncode:
                raise RuntimeError(f"{name}: {ended.stderr[-1500:]}")
            found.append(json.loads(ended.stdout.splitlines()[-1]))
        cpu, wall, memory = (
            sorted(one[key] for one in found)[1] for key in ("cpu_s", "wall_s", "megabytes")
        )
        write(f"| {package} {version} | {wall:.2f} | {cpu:.2f} | {memory:.0f} | {written:.0f} |\n")
        sys.stdout.flush()
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
