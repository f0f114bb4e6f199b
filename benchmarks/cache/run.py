"""How fast the cache is, as ratios within one run against the plainest code that does the same.

    python benchmarks/cache/run.py --folder /big/disk [--rows 5632] [--out results.md]

* shuffled batches, page cache warm: against ``np.take`` of a memmap, against the bare ``preadv``
  calls that any reader of files needs, and against zarr's own oindex
* block order, page cache cold: against reading the same files from end to end; webdataset and
  litdata on the same rows where they are installed, with the label entropy of each order
* writing to tmpfs: against a plain copy and write of the same bytes; and to the disk with fsync
* anonymous memory after many batches
* with zarr 3.4 or newer, its codec pipelines on the same files (``--only "zarr's pipelines"``)

Rows are 256 x 768 float16, the patches of a ViT-B/16 at 256 pixels. Run on a quiet machine.
``--out FILE`` appends the sections there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import numpy as np
import zarr
from cold import cold_reads
from machine import machine_line
from measuring import tell
from rows import ROW_BYTES, TOKENS, WIDTH, make_cache
from shuffled import memory, shuffled_reads
from writes import writes
from zarr_pipelines import zarr_pipelines

from phistill.cache import Cache

SECTIONS: dict[str, Callable[[Cache, Path], Iterator[str]]] = {
    "Shuffled batches, page cache warm, one thread": shuffled_reads,
    "Memory": lambda cache, _: memory(cache),
    "Cold page cache": cold_reads,
    "Writing a 101 MB shard": lambda _, folder: writes(folder),
    "zarr's pipelines": zarr_pipelines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the cache is made (default: temporary)")
    parser.add_argument("--rows", type=int, default=5632)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=SECTIONS, help="one section (default: all)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="phistill-", dir=options.folder))
    line = machine_line(
        f"NumPy {np.__version__}",
        f"zarr {zarr.__version__}",
        f"{options.rows} rows of {TOKENS} x {WIDTH} float16 "
        f"({options.rows * ROW_BYTES / 1e9:.1f} GB)",
    )
    tell([line], options.out)
    try:
        cache = make_cache(folder / "c", options.rows)
        for title in [options.only] if options.only else SECTIONS:
            tell(["", f"## {title}", "", *SECTIONS[title](cache, folder)], options.out)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
