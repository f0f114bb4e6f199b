"""Training from the cache against training with live teachers."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from steps import ALONE, DEMO_STUDENT, VIT_S, settings, take_steps
from synthetic import DEMO, synthetic_cache, vit_sized

from phistill.cache import Cache, TeacherInfo
from phistill.cache.joined import open_caches
from phistill.compute.precision import products_in
from phistill.train.data.source import Source
from phistill.train.resolve import resolve_run
from phistill.train.step.state import TrainState


def live(options: argparse.Namespace) -> list[str]:
    """The online baseline: the teacher's forward in each step, then the same step.

    Teachers have random weights, run under no_grad in the student's own precision, on the same
    uint8 pixels at their own size: what remains is resizing, normalising and the forward. Reading
    and decoding files, which a live run also does, is left out, in favour of the live run.
    """
    import timm

    lines = [
        "| teachers | student | live images/s | cached images/s | cached over live |",
        "|---|---|---|---|---|",
    ]
    demo = [
        (timm.create_model("vit_tiny_patch16_224", **shape), size) for shape, size in _demo_nets()
    ]
    cases: list[tuple[str, list[TeacherInfo], int, dict[str, Any], list[Any]]] = [
        ("the demo's three", list(DEMO), 60, DEMO_STUDENT, demo)
    ]
    for letter, model in (("S", "small"), ("B", "base"), ("L", "large")):
        name = f"vit_{model}_patch14_dinov2"
        net = [(name, 224)] if letter in options.sizes else []
        nets = [(timm.create_model(n, img_size=s, num_classes=0), s) for n, s in net]
        if nets:
            student = VIT_S | {"batch_size": 8}
            cases.append((f"one ViT-{letter}/14", vit_sized(letter), 224, student, nets))
    for name, teachers, pixels, student, nets in cases:
        with synthetic_cache(teachers, 4 * student["batch_size"], pixels) as cache:
            run = resolve_run(open_caches(cache), settings(**student), ALONE.device)
            state, source = TrainState(run, ALONE), Source(run.caches, run.targets)
            source.keep_in_memory(run.plan.rows)
            streamed = Source(run.caches, run.targets)
            take_steps(state, run, source, 2)
            cached: list[float] = []
            online: list[float] = []
            for _ in range(options.repeats):
                cached += take_steps(state, run, streamed, options.steps).seconds
                forward = _forward_seconds(nets, cache, student["batch_size"], run.precision)
                held = take_steps(state, run, source, options.steps).seconds
                online.append(statistics.median(held) + forward)
        rates = [student["batch_size"] / statistics.median(times) for times in (online, cached)]
        lines.append(
            f"| {name} | {student['student']} | {rates[0]:.1f} | {rates[1]:.1f} | "
            f"{rates[1] / rates[0]:.2f} |"
        )
    return lines


def _demo_nets() -> list[tuple[dict[str, Any], int]]:
    """Options of timm ViTs with the blocks and tokens of the bundled teachers, and their size."""
    shapes = ((48, 8, 192, 3, 4), (54, 9, 160, 4, 3), (60, 5, 188, 4, 4))
    return [
        (
            {
                "img_size": size,
                "patch_size": patch,
                "embed_dim": width,
                "num_heads": heads,
                "depth": depth,
                "num_classes": 0,
            },
            size,
        )
        for size, patch, width, heads, depth in shapes
    ]


def _forward_seconds(nets: Sequence[Any], cache: Cache, num: int, precision: str) -> float:
    """One batch through every teacher: resize, normalise, forward. Median of three."""
    pixels = torch.from_numpy(cache.reader("pixels", "pixels").read(np.arange(num)))
    times, dtype = [], "bfloat16" if precision == "bf16" else "float32"
    for _ in range(3):
        begun = time.perf_counter()
        images = pixels.permute(0, 3, 1, 2).float() / 255
        for net, size in nets:
            own = images
            if own.shape[-1] != size:
                own = torch.nn.functional.interpolate(own, (size, size), mode="bicubic")
            with torch.no_grad(), products_in(dtype, "cpu"):
                net.eval().forward_features((own - 0.5) / 0.5)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
