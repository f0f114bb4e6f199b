"""Memory and descriptors of long runs."""

from __future__ import annotations

import argparse
import os

from machine import anonymous_mb
from steps import ALONE, settings, take_steps
from synthetic import DEMO, synthetic_cache

from phistill.cache.joined import open_caches
from phistill.train.data.source import Source
from phistill.train.resolve import resolve_run
from phistill.train.step.state import TrainState


def leaks(options: argparse.Namespace) -> list[str]:
    """A run of 40 steps and one of 2,000, streamed with two workers: G24 allows 5 %."""
    student = {
        "student": "vit_tiny_patch16_224",
        "student_options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
        "head_width": 32,
        "batch_size": 16,
        "loader_workers": 2,
        "memory_bytes": 0,
    }
    rows = []
    with synthetic_cache(list(DEMO), 128, 48) as cache:
        run = resolve_run(open_caches(cache), settings(**student), ALONE.device)
        state, source = TrainState(run, ALONE), Source(run.caches, run.targets)
        for steps in (40, 2000):
            take_steps(state, run, source, steps)
            rows.append((steps, anonymous_mb(), len(os.listdir("/proc/self/fd"))))
    lines = ["| steps | anonymous MB | descriptors |", "|---|---|---|"]
    lines += [f"| {steps} | {mb:.1f} | {descriptors} |" for steps, mb, descriptors in rows]
    return [*lines, "", f"- growth of anonymous memory: {rows[1][1] / rows[0][1] - 1:+.1%}"]
