"""Speed and memory of training; every comparison is a ratio within one run.

    python benchmarks/train.py loader     rows/s, CPU per row, waiting of a student that only sleeps
    python benchmarks/train.py memory     step time from the cache over step time from memory
    python benchmarks/train.py live       images/s from the cache over images/s with live teachers
    python benchmarks/train.py sweep      8 settings in one pass against 8 runs
    python benchmarks/train.py unshared   the same for 8 settings that share no normalizer
    python benchmarks/train.py throttle   the same from a store that is five times too slow
    python benchmarks/train.py leaks      anonymous memory and descriptors of a 50x longer run

Each prints a Markdown section; ``--out FILE`` appends it there. Caches are synthetic, made in a
temporary folder and read once before anything is timed, so "from the cache" means through the
reader, its checksums and the page cache, not from a cold disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import train_leaks
import train_live
import train_loader
import train_memory
import train_sweep
from machine import header
from measuring import tell

SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "loader": train_loader.loader,
    "memory": train_memory.memory,
    "live": train_live.live,
    "sweep": train_sweep.sweep,
    "unshared": train_sweep.sweep_unshared,
    "throttle": train_sweep.throttle,
    "leaks": train_leaks.leaks,
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
            f"train.py {name}",
            f"{torch.get_num_threads()} torch threads",
            f"torch {torch.__version__}",
        )
        tell([*top, *SECTIONS[name](options), ""], options.out)


if __name__ == "__main__":
    main()
