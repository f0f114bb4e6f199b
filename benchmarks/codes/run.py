"""Codes of rows: what is lost at so many bits, beside others; what they cost; retrieval.

    python benchmarks/codes/run.py data --cache DIR   makes a cache of four teachers
    python benchmarks/codes/run.py losses --cache DIR [--teachers clip,ssl,mask,lite0] [--fresh DIR]
    python benchmarks/codes/run.py mvq --cache DIR    multi-quantization, minutes of training each
    python benchmarks/codes/run.py cost               encoding and decoding, of synthetic rows
    python benchmarks/codes/run.py loading            rows and steps from codes, warm and slow disk
    python benchmarks/codes/run.py retrieval --cache DIR

Each prints a Markdown section; `--out FILE` appends it there. Losses are of held-out rows. The
teachers are the demo's three and EfficientNet-Lite0 with ImageNet's weights
(examples/lite0_teacher.py), over the bundled pictures. losses and retrieval need faiss-cpu, mvq
multi-quantization.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import cost
import loading
import losses
import numpy as np
import retrieval
from machine import header
from measuring import tell

ROOT = Path(__file__).parent.parent.parent
TEACHERS = ("demo:clip", "demo:ssl", "demo:mask", "lite0=module:lite0_teacher:build")


def data(options: argparse.Namespace) -> list[str]:
    """Extract the four teachers, and fit their statistics."""
    from phistill.pipeline import CacheSettings, extract
    from phistill.stats import fit_stats

    sys.path.insert(1, str(ROOT / "examples"))
    images = options.images or ROOT / "demo" / "images.parquet"
    settings = CacheSettings(pixel_size=64)
    cache = extract(images, options.cache, TEACHERS, settings=settings).cache
    fit_stats(cache)
    return [f"{cache.num_rows:,} rows, teachers {', '.join(cache.teachers)}."]


SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "data": data,
    "losses": losses.losses,
    "mvq": losses.mvq,
    "cost": cost.cost,
    "loading": loading.loading,
    "retrieval": retrieval.retrieval,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(SECTIONS))
    parser.add_argument("--cache", type=Path, help="of the four teachers, made by data")
    parser.add_argument("--images", type=Path, help="of data; default the bundled pictures")
    parser.add_argument("--fresh", type=Path, help="a second cache: its rows are measured")
    parser.add_argument("--teachers", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--pilot", type=int, default=1500, help="rows that are fitted on")
    parser.add_argument("--heldout", type=int, default=150, help="rows that are measured")
    parser.add_argument("--steps", type=int, default=1000, help="of each phase of mvq's training")
    parser.add_argument(
        "--token-bytes",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[8, 16],
        help="of mvq",
    )
    parser.add_argument("--device", default="cpu", help="of mvq's training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append the section to this file")
    options = parser.parse_args()
    top = header(options.what, f"NumPy {np.__version__}", f"{options.threads} thread(s)")
    tell([*top, *SECTIONS[options.what](options), ""], options.out)


if __name__ == "__main__":
    main()
