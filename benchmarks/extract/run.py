"""How much of a teacher's own speed ``extract`` keeps, everything included.

    python benchmarks/extract/run.py [--device cpu|cuda] [--images 512] [--write FOLDER]
    python benchmarks/extract/run.py --device cuda --workers 8 --images 20000

The second line is the one for a machine with a GPU: ViT-L/14 in bfloat16, eight decoding workers.

Three measurements in one run, the first two in turns, medians over ``--rounds``:

1. images/s of ``extract`` (500 px JPEGs read, decoded, resized, run, written, committed) over what
   the same teacher's bare loop over prepared tensors leaves possible. With a GPU decoding has cores
   of its own, and that is the bare loop's images/s. On the CPU teacher and decoder need the same
   cores. Both are counted: an image costs b seconds of wall time in the bare loop, which has all
   cores, and d CPU-seconds of bare decoding, spread over the cores, so 1 / (b + d / cores) is
   possible. Beside it stands the same question asked of CPU-seconds, which other work on the
   machine changes less: (bare forward + bare decode) over all that ``extract`` uses, its decoding
   processes included.
2. The same with a teacher that sleeps t per batch instead of computing: what is lost is overlap
   that is missing. ``whole`` counts from the first image asked for to the last commit, ``steady``
   from the end of the first batch to the end of the last.
3. Decoding alone, in threads and in processes, in images/s.

Building the teacher is in none of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# As the phistill command does: threads of OpenMP that spin take the decoder's core (docs/log.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import torch
from bare import Speed, bare, bare_decode, decode_rate
from inputs import SLEEP_ROWS, SLEEP_S, SLEEPER, make_images
from whole import Extraction, extraction

from phistill.compute.devices import choose_device, hardware_name
from phistill.pipeline.decode.shards import num_cores

VIT_S = "timm:vit_small_patch16_224.augreg_in21k?random=0"
VIT_L = "timm:vit_large_patch14_clip_224.openai?random=0"


def hardware(device: torch.device) -> dict[str, Any]:
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "cores": num_cores(),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["gpu"] = hardware_name(device)
    return facts


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = choose_device(arguments.device)
    images, cache = folder / "images", folder / "cache"
    make_images(images, arguments.images)
    gpu = device.type == "cuda"
    spec, rows = (VIT_L, 128) if gpu else (VIT_S, 32)
    workers = arguments.workers
    cores = num_cores()
    found: dict[str, Any] = {"hardware": hardware(device), "teacher": spec, "workers": workers}
    runs = [
        (
            bare(spec, device, rows, min(arguments.images, 4096 if gpu else 256)),
            bare_decode(images),
            extraction(images, cache, spec, arguments.device, rows, workers),
        )
        for _ in range(arguments.rounds)
    ]
    shared = 0 if gpu else cores  # cores that teacher and decoder have to share
    found["extract"] = {"images": arguments.images, **_summary(runs, shared)}
    sleeping = extraction(images, cache, SLEEPER, "cpu", SLEEP_ROWS, workers)
    each = SLEEP_S / SLEEP_ROWS
    found["overlap"] = {
        "images": arguments.images,
        "possible_images_per_s": 1 / each,
        "extract_images_per_s": 1 / sleeping.whole.wall_s,
        "ratio_whole": each / sleeping.whole.wall_s,
        "ratio_steady": each / sleeping.steady_s,
        "busy": sleeping.busy,
    }
    found["decode"] = {
        f"{mode} x {number}": decode_rate(images, mode, number)
        for mode in ("threads", "processes")
        for number in sorted({1, workers or cores})
    }
    return found


def _summary(runs: list[tuple[Speed, Speed, Extraction]], shared_cores: int) -> dict[str, Any]:
    """Medians over the rounds; ``shared_cores`` is 0 where decoding has cores of its own."""
    possible = [
        one.wall_s + (decode.cpu_s / shared_cores if shared_cores else 0) for one, decode, _ in runs
    ]
    return {
        "bare_images_per_s": median(1 / one.wall_s for one, _, _ in runs),
        "possible_images_per_s": median(1 / seconds for seconds in possible),
        "extract_images_per_s": median(1 / whole.whole.wall_s for _, _, whole in runs),
        "bare_cpu_ms": median(1e3 * one.cpu_s for one, _, _ in runs),
        "decode_cpu_ms": median(1e3 * decode.cpu_s for _, decode, _ in runs),
        "extract_cpu_ms": median(1e3 * whole.whole.cpu_s for _, _, whole in runs),
        "busy": median(whole.busy for _, _, whole in runs),
        "ratio": median(p / r[2].whole.wall_s for p, r in zip(possible, runs, strict=True)),
        "ratio_steady": median(p / r[2].steady_s for p, r in zip(possible, runs, strict=True)),
        "ratio_cpu": median((b.cpu_s + d.cpu_s) / e.whole.cpu_s for b, d, e in runs),
        "ratios_of_rounds": [
            round(p / r[2].whole.wall_s, 3) for p, r in zip(possible, runs, strict=True)
        ],
    }


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, help="Decoding workers; default one per core.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="Folder for extract-DEVICE-DATE.json.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(arguments, Path(name))
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.write is not None:
        arguments.write.mkdir(parents=True, exist_ok=True)
        name = f"extract-{arguments.device}-{found['hardware']['date']}.json"
        (arguments.write / name).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
