"""Steps from the cache against steps from memory."""

from __future__ import annotations

import argparse
import statistics

from steps import ALONE, DEMO_STUDENT, VIT_S, Steps, settings, take_steps
from synthetic import DEMO, synthetic_cache, vit_sized

from phistill.cache.joined import open_caches
from phistill.train.data.source import Source
from phistill.train.resolve import resolve_run
from phistill.train.step.state import TrainState


def memory(options: argparse.Namespace) -> list[str]:
    """Steps of a ViT-S student on three ViT-B-sized teachers, and of the demo's student on its own.

    The same state takes turns: a block of steps from the cache, one from memory, and so on.
    """
    lines = [
        "| student | from the cache | from memory | ratio | ratio of CPU time | waiting |",
        "|---|---|---|---|---|---|",
    ]
    cases = (
        ("ViT-S/16 at 224, 3 x ViT-B", vit_sized("BBB"), 224, VIT_S, options.steps),
        ("demo student, demo teachers", list(DEMO), 60, DEMO_STUDENT, 4 * options.steps),
    )
    for name, teachers, pixels, student, steps in cases:
        num_rows = max(options.rows, 2 * student["batch_size"])
        with synthetic_cache(teachers, num_rows, pixels) as cache:
            run = resolve_run(open_caches(cache), settings(**student), ALONE.device)
            sources = {
                "cache": Source(run.caches, run.targets),
                "mem": Source(run.caches, run.targets),
            }
            sources["mem"].keep_in_memory(run.plan.rows)
            state = TrainState(run, ALONE)
            found: dict[str, list[Steps]] = {"cache": [], "mem": []}
            take_steps(state, run, sources["mem"], 2)
            for _ in range(options.repeats):
                for kind, source in sources.items():
                    found[kind].append(take_steps(state, run, source, steps))
        cached, held = (
            statistics.median(s for block in found[kind] for s in block.seconds)
            for kind in ("cache", "mem")
        )
        cpu = [statistics.median(block.cpu_s for block in found[kind]) for kind in found]
        waiting = statistics.median(block.wait_s / sum(block.seconds) for block in found["cache"])
        lines.append(
            f"| {name} | {cached * 1e3:.0f} ms | {held * 1e3:.0f} ms | {cached / held:.3f} | "
            f"{cpu[0] / cpu[1]:.3f} | {waiting:.1%} |"
        )
    return [
        *lines,
        "",
        "On a machine with other work the times move by a third between blocks; CPU time, of all "
        "threads of the process, moves less.",
    ]
