"""How work is timed, in turns with what it is compared to, and how the figures are told."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, unmeasured: int = 0
) -> dict[str, list[float]]:
    """Wall seconds of each, taken in turns so that a slow minute of the machine hits all.

    ``unmeasured`` rounds go before.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-unmeasured, rounds):
        for name, work in works.items():
            taken = seconds(work)
            if number >= 0:
                times[name].append(taken)
    return times


def ratios(times: Sequence[float], by: Sequence[float]) -> list[float]:
    """Ratios within each round."""
    return [one / other for one, other in zip(times, by, strict=True)]


def spread(values: Sequence[float], style: str) -> str:
    """The median, and in brackets the smallest and the largest."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:{style}} ({low:{style}} to {high:{style}})"


def tell(lines: Sequence[str], out: Path | None) -> None:
    """Print a section, and append it to ``out``."""
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(text)
