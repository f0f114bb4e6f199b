"""Speed and memory of training; every comparison is a ratio within one run.

    python benchmarks/train/run.py WHAT [--out FILE]

    loader                 rows/s, CPU per row, waiting of a student that only sleeps
    memory                 step time from the cache over step time from memory
    live                   images/s from the cache over images/s with live teachers
    sweep                  8 settings in one pass against 8 runs
    unshared               the same for 8 settings that share no normalizer
    throttle               the same from a store that is five times too slow
    leaks                  anonymous memory and descriptors of a 50x longer run

Each prints a Markdown section; ``--out FILE`` appends it there. Caches are synthetic, made in a
temporary folder and read once before anything is timed, so "from the cache" means through the
reader, its checksums and the page cache, not from a cold disk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import leaks
import live
import loader
import memory
import sweep
import torch
from machine import header
from measuring import tell

SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "loader": loader.loader,
    "memory": memory.memory,
    "live": live.live,
    "sweep": sweep.sweep,
    "unshared": sweep.sweep_unshared,
    "throttle": sweep.throttle,
    "leaks": leaks.leaks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=[*SECTIONS, "all"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", default="SBL", help="ViT teachers of `live`")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for name in SECTIONS if options.section == "all" else [options.section]:
        top = header(
            f"train {name}",
            f"{torch.get_num_threads()} torch threads",
            f"torch {torch.__version__}",
        )
        tell([*top, *SECTIONS[name](options), ""], options.out)


if __name__ == "__main__":
    main()
