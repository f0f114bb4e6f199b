"""How much of a teacher's own speed ``extract`` keeps, everything included.

    python benchmarks/extract.py [--device cpu|cuda] [--images 512] [--write benchmarks/results]
    python benchmarks/extract.py --device cuda --workers 8 --images 20000 --write benchmarks/results

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
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As the phistill command does: threads of OpenMP that spin take the decoder's core (docs/log.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

from phistill.pipeline import (
    CacheSettings,
    ExtractProgress,
    Features,
    Preprocessing,
    extract,
)
from phistill.pipeline.decode import DecodeRules
from phistill.pipeline.decode_image import DecodeSetup, decode_image
from phistill.pipeline.decoding import Mode, ShardRows, decode_shards, num_cores
from phistill.pipeline.extract import ExtractOptions
from phistill.pipeline.runner import TeacherRunner
from phistill.pipeline.sources import open_source
from phistill.pipeline.teachers import TeacherSpec
from phistill.pipeline.views import Rendering, View

VIT_S = "timm:vit_small_patch16_224.augreg_in21k?random=0"
VIT_L = "timm:vit_large_patch14_clip_224.openai?random=0"
RENDERING = Rendering((224, 224), "bicubic")
SLEEP_S = 0.4
SLEEP_ROWS = 16


class Sleeper:
    """Sleeps ``SLEEP_S`` per batch; patches are zeros of a ViT-S's shape."""

    def identity(self) -> Mapping[str, Any]:
        return {"source": "benchmark", "sleep_s": SLEEP_S}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        time.sleep(SLEEP_S)
        return Features(torch.zeros(len(images), 14, 14, 384), torch.zeros(len(images), 384))


def sleeper(model: str, options: dict[str, str]) -> Sleeper:
    return Sleeper()


def make_images(folder: Path, count: int) -> None:
    """500 x 375 JPEGs of about 60 kB: smooth colours with grain, as photographs have."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = generator.normal(0, 8, smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=85)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What an image costs."""

    wall_s: float
    cpu_s: float
    """Of this process and of those it waited for, all threads."""


def bare(spec: str, device: torch.device, rows: int, count: int) -> Speed:
    """The teacher over tensors that are ready on the device."""
    teacher = TeacherSpec.parse(spec).build()
    runner = TeacherRunner("t", spec, teacher, device, rows_per_forward=rows)
    height, width = runner.rendering.size
    images = torch.randn(rows, 3, height, width, device=device)
    mixed = device.type == "cuda"

    def step() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            teacher.features(images)

    step()
    _wait(device)
    steps = max(1, count // rows)
    started, cpu = time.perf_counter(), _cpu_s()
    for _ in range(steps):
        step()
    _wait(device)
    total = steps * rows
    return Speed(wall_s=(time.perf_counter() - started) / total, cpu_s=(_cpu_s() - cpu) / total)


def bare_decode(images: Path) -> Speed:
    """Reading, decoding and resizing one image after another, in this thread alone."""
    source, rules = open_source(images), DecodeRules()
    setup = DecodeSetup(rules, (View(),), (RENDERING,), 0)
    entries = source.entries()[:256]
    started, cpu = time.perf_counter(), _cpu_s()
    for entry in entries:
        decode_image(source.read(entry.uri, entry.offset, entry.length), entry.id, [0], setup)
    total = len(entries)
    return Speed(wall_s=(time.perf_counter() - started) / total, cpu_s=(_cpu_s() - cpu) / total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """One run of ``extract``."""

    whole: Speed
    """From the first image asked for to the last commit."""
    steady_s: float
    """Wall seconds per image between the ends of the first and of the last batch."""
    busy: float
    """What the progress line says of the teacher."""


def extraction(
    images: Path, cache: Path, spec: str, device: str, rows: int, workers: int | None
) -> Extraction:
    marks: list[tuple[float, float, ExtractProgress]] = []
    extract(
        images,
        cache,
        [f"t={spec}"],
        settings=CacheSettings(pixel_size=0, holdout=0.0, shard_rows=64),
        options=ExtractOptions(device=device, rows_per_forward=rows, num_workers=workers),
        on_progress=lambda at: marks.append((time.perf_counter(), _cpu_s(), at)),
    )
    cpu = _cpu_s()  # the decoding processes have ended and are counted now
    shutil.rmtree(cache)
    total = marks[-1][2].total_rows
    first = next(mark for mark in marks if mark[2].computed_rows)
    last = next(mark for mark in marks if mark[2].computed_rows == total)
    return Extraction(
        whole=Speed(wall_s=(marks[-1][0] - marks[0][0]) / total, cpu_s=(cpu - marks[0][1]) / total),
        steady_s=(last[0] - first[0]) / (total - first[2].computed_rows),
        busy=marks[-1][2].busy,
    )


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def decode_rate(images: Path, mode: Mode, workers: int) -> float:
    """Images/s of reading, decoding and resizing alone, after the workers have started."""
    source = open_source(images)
    entries = source.entries()
    jobs = []
    for shard, start in enumerate(range(0, len(entries), 64)):
        part = entries[start : start + 64]
        nothing = [-1] * len(part)
        uris = [entry.uri for entry in part]
        jobs.append(ShardRows(shard, uris, nothing, nothing, [0] * len(part)))
    shards = decode_shards(
        source, jobs, rules=DecodeRules(), views=[View()], renderings=[RENDERING],
        num_workers=workers, mode=mode,
    )  # fmt: skip
    next(shards)
    started = time.perf_counter()
    for _ in shards:
        pass
    return (len(entries) - 64) / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = torch.device(arguments.device)
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
    possible = [one.wall_s + (0 if gpu else decode.cpu_s / cores) for one, decode, _ in runs]
    found["extract"] = {
        "images": arguments.images,
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
    sleeping = extraction(images, cache, f"module:{__name__}:sleeper", "cpu", SLEEP_ROWS, workers)
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


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
