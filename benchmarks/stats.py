"""Speed, memory and accuracy of the statistics; every comparison is a ratio within one run.

    python benchmarks/stats.py throughput --gib 4     fit-stats against bare products and others
    python benchmarks/stats.py memory                 peak memory against rows
    python benchmarks/stats.py growth                 second run, 10 % more images, a new teacher
    python benchmarks/stats.py widths                 a rotation for every width 1..2048
    python benchmarks/stats.py fwht                   the Hadamard product, fast and plain
    python benchmarks/stats.py errors                 moments against two-pass float64
    python benchmarks/stats.py heldout --cache DIR    channel variances on held-out images

Each prints a Markdown section; `--out FILE` appends it there. The cache is synthetic, 256 x 1024
float16 per row, made in a temporary folder and read once before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import stats_errors
import stats_growth
import stats_heldout
import stats_memory
import stats_rotation
import stats_throughput
from machine import header
from measuring import tell

SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "throughput": stats_throughput.throughput,
    "memory": stats_memory.memory,
    "growth": stats_growth.grow,
    "widths": stats_rotation.widths,
    "errors": stats_errors.errors,
    "fwht": stats_rotation.fwht,
    "heldout": stats_heldout.heldout,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(SECTIONS))
    parser.add_argument("--gib", type=float, default=4.0, help="size of the cache")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--last", type=int, default=2048, help="last width")
    parser.add_argument("--cache", type=Path, help="an existing cache, for heldout")
    parser.add_argument("--out", type=Path, help="append the section to this file")
    options = parser.parse_args()
    top = header(options.what, f"NumPy {np.__version__}")
    tell([*top, *SECTIONS[options.what](options), ""], options.out)


if __name__ == "__main__":
    main()
