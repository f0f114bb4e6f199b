"""Speed, memory and accuracy of the statistics; every comparison is a ratio within one run.

    python benchmarks/stats/run.py WHAT [--out FILE]

    throughput --gib 4     fit-stats against bare products and others
    memory                 peak memory against rows
    growth                 second run, 10 % more images, a new teacher
    widths                 a rotation for every width 1..2048
    fwht                   the Hadamard product, fast and plain
    errors                 moments against two-pass float64
    heldout --cache DIR    channel variances on held-out images

Each prints a Markdown section; `--out FILE` appends it there. The cache is synthetic, 256 x 1024
float16 per row, made in a temporary folder and read once before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import accuracy
import growth
import heldout
import memory
import numpy as np
import rotation
import throughput
from machine import header
from measuring import tell

SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "throughput": throughput.throughput,
    "memory": memory.memory,
    "growth": growth.grow,
    "widths": rotation.widths,
    "errors": accuracy.errors,
    "fwht": rotation.fwht,
    "heldout": heldout.heldout,
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
