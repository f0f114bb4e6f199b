"""Memory and descriptors of long runs."""

from __future__ import annotations

import argparse
import os

from machine import anonymous_mb
from steps import ALONE, settings, take_steps
from synthetic import DEMO, synthetic_cache

from phistill.train.data.loader import Source
from phistill.train.resolve import prepare


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
        lesson = prepare(cache, settings(**student), ALONE.device)
        trainee, source = lesson.new_trainee(ALONE), Source(cache, lesson.targets)
        for steps in (40, 2000):
            take_steps(trainee, lesson, source, steps)
            rows.append((steps, anonymous_mb(), len(os.listdir("/proc/self/fd"))))
    lines = ["| steps | anonymous MB | descriptors |", "|---|---|---|"]
    lines += [f"| {steps} | {mb:.1f} | {descriptors} |" for steps, mb, descriptors in rows]
    return [*lines, "", f"- growth of anonymous memory: {rows[1][1] / rows[0][1] - 1:+.1%}"]
