"""How many rows one forward pass takes: measured once, when a teacher is new.

The number is stored with the teacher and never measured again, because the size of a batch can
change the last bit of a feature.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
from msgspec.structs import replace

from phistill.compute.devices import release_cached_memory

from .runner import TeacherRunner, sharing

log = logging.getLogger(__name__)

MAX_ROWS = {"cuda": 1024}
"""Larger batches than this gain nothing and fill the memory; 64 on other devices."""

MIN_GAIN = 1.05
"""Twice the rows must be this much faster per row, or they are not worth their memory."""

SLOW_S = 5.0
"""A batch that takes this long is the last one tried: four minutes of it would be a shard."""

FIRST_ROWS = 4


def choose_batch_sizes(runners: Mapping[str, TeacherRunner]) -> None:
    """Measure each teacher and set what its ``info`` says; layers of one model stay together."""
    for group in sharing(runners):
        first = runners[group[0]]
        limit = MAX_ROWS.get(first.device.type, 64)
        speeds = measure(lambda rows, runner=first: _seconds(runner, rows), limit)  # type: ignore[misc]
        rows = best(speeds)
        for name in group:
            runners[name].info = replace(runners[name].info, rows_per_forward=rows)
        tried = ", ".join(f"{size}: {speed:.3g}/s" for size, speed in speeds.items())
        log.info("%s: %d rows per forward pass (measured %s).", ", ".join(group), rows, tried)


def measure(seconds: Callable[[int], float | None], limit: int) -> dict[int, float]:
    """Rows per second by batch size, doubled until it does not help, until memory ends (None), or
    until a batch is slow. The smallest size is a single row when FIRST_ROWS do not fit either."""
    speeds: dict[int, float] = {}
    rows = FIRST_ROWS
    while rows <= limit:
        taken = seconds(rows)
        if taken is None:
            if speeds or rows == 1:
                break
            rows = 1
            continue
        speeds[rows] = rows / taken
        if taken > SLOW_S or speeds[rows] < MIN_GAIN * speeds.get(rows // 2, 0.0):
            break
        rows *= 2
    return speeds


def best(speeds: Mapping[int, float]) -> int:
    """The smallest size that is within MIN_GAIN of the fastest; 1 when none was measured."""
    fastest = max(speeds.values(), default=0.0)
    return min((rows for rows, speed in speeds.items() if speed * MIN_GAIN >= fastest), default=1)


def _seconds(runner: TeacherRunner, rows: int) -> float | None:
    """One batch of random images, storing included, the faster of two; None when it does not fit
    into memory."""
    import torch

    height, width = runner.rendering.size
    pixels = np.random.default_rng(0).integers(0, 256, (rows, height, width, 3), np.uint8)
    taken = []
    try:
        for _ in range(3):  # the first warms up, and compiles where that is asked for
            started = time.perf_counter()
            runner.run(pixels, rows)
            taken.append(time.perf_counter() - started)
            if taken[-1] > SLOW_S:
                return taken[-1]
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:  # the CPU's and Apple's allocators raise a plain one
        if "memory" not in str(error).lower():
            raise
    if len(taken) < 3:
        release_cached_memory(runner.device)
        return None
    return min(taken[1:])
