"""How fast: extraction, training and a sweep, each beside what it is compared to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bare import bare
from inputs import make_images
from sizes import VIT_L, VIT_S, Sizes
from steps import DEMO_STUDENT
from synthetic import synthetic_cache, vit_sized
from whole import extraction as extracted

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.stats import fit_stats
from phistill.stats.compacting import compact_cache
from phistill.train import TrainConfig, train
from phistill.train.resolve import resolve_run
from phistill.train.trainer import Run, source_of, train_runs


def extraction(sizes: Sizes, folder: Path) -> list[str]:
    """Images/s of extract, decoding and writing included, over the teacher's forward alone."""
    device, images = torch.device(sizes.device), folder / "images"
    make_images(images, sizes.images)
    lines = [
        "| teacher | bare forward/s | extract/s | steady/s | steady over bare | busy |",
        "|---|---|---|---|---|---|",
    ]
    for name, spec, rows, count in (
        ("ViT-S/16", VIT_S, sizes.rows_s, sizes.images),
        ("ViT-L/14", VIT_L, sizes.rows_l, sizes.images_l),
    ):
        for number, path in enumerate(sorted(images.glob("*.jpg"))):
            if number >= count:
                path.unlink()
        forward = bare(spec, device, rows, count)
        whole = extracted(images, folder / "cache", spec, sizes.device, rows, None)
        lines.append(
            f"| {name} | {1 / forward.wall_s:.1f} | {1 / whole.whole.wall_s:.1f} | "
            f"{1 / whole.steady_s:.1f} | {forward.wall_s / whole.steady_s:.2f} | {whole.busy:.0%} |"
        )
    return lines


def _config(sizes: Sizes, **changes: Any) -> TrainConfig:
    student = {"student": "vit_small_patch16_224"} if sizes.vit_student else DEMO_STUDENT
    values = {**student, "batch_size": sizes.train_batch, "num_steps": sizes.train_steps}
    values |= {"device": sizes.device, "tensorboard": False, "checkpoint_every": 0}
    return TrainConfig(**{**values, **changes})


def training(sizes: Sizes, folder: Path) -> list[str]:
    """Rows/s of a whole run, read from the cache, held in memory and from codes, in turns."""
    lines = ["| rows come from | rows/s | waiting for data | precision |", "|---|---|---|---|"]
    pixels = 224 if sizes.vit_student else 60
    with synthetic_cache(vit_sized("S"), sizes.train_rows, pixels) as cache:
        fit_stats(cache)
        compact_cache(cache, folder / "codes", bits=2)
        codes = store.open(folder / "codes")
        places = [("the cache", cache, 0), ("memory", cache, 2**36), ("2 bits", codes, 0)]
        for number, (name, place, memory_bytes) in enumerate([*places, *places]):
            done = train(place, folder / f"run{number}", _config(sizes, memory_bytes=memory_bytes))
            lines.append(
                f"| {name} | {done.rows_per_s:.1f} | {done.wait_share:.1%} | {done.precision} |"
            )
    return lines


def sweep_against_runs(sizes: Sizes, folder: Path) -> list[str]:
    """Seconds of students of several rates in one pass over the cache, and of a run for each."""
    base: dict[str, Any] = {**DEMO_STUDENT, "memory_bytes": 0, "batch_size": sizes.train_batch}
    configs = [_config(sizes, **base, lr=1e-3 * 1.1**number) for number in range(sizes.cells)]
    with synthetic_cache(vit_sized("SS"), sizes.train_rows, 60) as cache:
        _together(cache, folder / "warm", configs[:1])  # kernels are compiled, libraries loaded
        alone = sum(
            _together(cache, folder / f"alone{number}", [config])
            for number, config in enumerate(configs)
        )
        together = _together(cache, folder / "sweep", configs)
    return [
        f"- {sizes.cells} runs one after the other: {alone:.1f} s",
        f"- one sweep of the {sizes.cells}: {together:.1f} s, {alone / together:.2f} times as fast",
    ]


def _together(cache: Cache, folder: Path, configs: Sequence[TrainConfig]) -> float:
    """Seconds of the steps of runs that take turns on each batch."""
    caches, group = open_caches(cache), Ranks(device=torch.device(configs[0].device))
    runs = [
        Run(folder / str(number), resolve_run(caches, config, group.device), group, None)
        for number, config in enumerate(configs)
    ]
    begun = time.perf_counter()
    train_runs(runs, source_of(runs, caches))
    seconds = time.perf_counter() - begun
    for run in runs:
        run.close()
    return seconds
