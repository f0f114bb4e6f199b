"""Students and blocks of timed steps for the sections of run.py."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from phistill.compute.allocator import keeping_freed_memory
from phistill.compute.ranks import Ranks
from phistill.train import TrainConfig
from phistill.train.data.loader import Loader
from phistill.train.data.source import Source
from phistill.train.resolve import ResolvedRun
from phistill.train.step.state import TrainState

ALONE = Ranks(device=torch.device("cpu"))

DEMO_STUDENT: dict[str, Any] = {
    "student": "vit_tiny_patch16_224",
    "student_options": {"patch_size": 10, "embed_dim": 192, "depth": 4, "num_heads": 3},
    "head_width": 256,
    "batch_size": 48,
}
VIT_S: dict[str, Any] = {"student": "vit_small_patch16_224", "batch_size": 16}


def settings(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"device": "cpu", "tensorboard": False, "num_steps": 10_000}
    return TrainConfig(**{**base, **changes})


def loader_of(run: ResolvedRun, source: Source, start: int, stop: int) -> Loader:
    return Loader(
        source,
        run.plan,
        run.targets,
        start=start,
        stop=stop,
        workers=0 if source.is_resident else run.config.loader_workers,
        read_ahead=run.config.read_ahead,
    )


@dataclass(frozen=True)
class Steps:
    """A block of steps: seconds of each, data included; CPU seconds of all; seconds waited."""

    seconds: list[float]
    cpu_s: float
    wait_s: float


def take_steps(state: TrainState, run: ResolvedRun, source: Source, num: int) -> Steps:
    """``num`` steps; the first one after a change of source has nothing read ahead and is extra."""
    seconds: list[float] = []
    with keeping_freed_memory(ALONE.device), loader_of(run, source, 0, num + 1) as batches:
        begun = cpu = time.perf_counter()
        waited = 0.0
        for batch in batches:
            state.train_step(batch)
            now = time.perf_counter()
            seconds.append(now - begun)
            begun = now
            if batch.step == 0:
                cpu, waited = time.process_time(), batches.wait_s
        return Steps(seconds[1:], time.process_time() - cpu, batches.wait_s - waited)
