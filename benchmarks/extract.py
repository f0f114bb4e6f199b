"""How much of a teacher's own speed ``extract`` keeps, everything included.

    python benchmarks/extract.py [--device cpu|cuda] [--images 1024] [--write benchmarks/results]

Three measurements in one run:

1. images/s of ``extract`` (500 px JPEGs read, decoded, resized, run, written, committed) over
   images/s of the same teacher's bare loop over prepared tensors. On CUDA decoding has cores of its
   own. On the CPU the teacher takes all cores, so decoding cannot be hidden: the ratio counts what
   both need together, 1 / bare + 1 / (cores x decode), with decode measured alone on one core. The
   plain ratio is printed beside it.
2. The same with a teacher that sleeps t per batch instead of computing: what is lost is overlap
   that is missing.
3. Decoding alone, in threads and in processes, in images/s.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phistill.pipeline import CacheSettings, ExtractOptions, Features, Preprocessing, extract
from phistill.pipeline.decode import DecodeRules
from phistill.pipeline.decoding import Mode, ShardRows, decode_shards, num_cores
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


def bare_rate(spec: str, device: torch.device, rows: int, count: int) -> float:
    """Images/s of the teacher over tensors that are ready on the device."""
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
    started = time.perf_counter()
    for _ in range(max(1, count // rows)):
        step()
    _wait(device)
    return max(1, count // rows) * rows / (time.perf_counter() - started)


def extract_rate(
    images: Path, cache: Path, spec: str, device: str, rows: int, workers: int | None
) -> float:
    """Images/s of the whole extraction, building the teacher left out."""
    marks: list[tuple[float, int]] = []
    extract(
        images,
        cache,
        [f"t={spec}"],
        settings=CacheSettings(pixel_size=0, holdout=0.0, shard_rows=32),
        options=ExtractOptions(device=device, rows_per_forward=rows, num_workers=workers),
        on_progress=lambda at: marks.append((time.perf_counter(), at.done_rows)),
    )
    shutil.rmtree(cache)
    # The first report comes as decoding starts, the last after the last commit.
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


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
    decode_one = decode_rate(images, "threads", 1)
    bare = bare_rate(spec, device, rows, min(arguments.images, 2048 if gpu else 256))
    whole = extract_rate(images, cache, spec, arguments.device, rows, workers)
    fair = bare if gpu else 1.0 / (1.0 / bare + 1.0 / (decode_one * cores))
    found["extract"] = {
        "bare_images_per_s": bare,
        "decode_images_per_s_one_core": decode_one,
        "possible_images_per_s": fair,
        "extract_images_per_s": whole,
        "ratio": whole / fair,
        "plain_ratio": whole / bare,
    }
    rate = SLEEP_ROWS / SLEEP_S
    sleeping = extract_rate(images, cache, f"module:{__name__}:sleeper", "cpu", SLEEP_ROWS, workers)
    found["overlap"] = {
        "possible_images_per_s": rate,
        "extract_images_per_s": sleeping,
        "ratio": sleeping / rate,
    }
    found["decode"] = {
        f"{mode} x {number}": decode_rate(images, mode, number)
        for mode in ("threads", "processes")
        for number in sorted({1, workers or cores})
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, help="Decoding workers; default one per core.")
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
