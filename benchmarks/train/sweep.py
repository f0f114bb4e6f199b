"""Many students from one pass against as many runs."""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from machine import Peak, bytes_read
from steps import ALONE, DEMO_STUDENT, settings
from synthetic import synthetic_cache, vit_sized

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.stats import METHODS
from phistill.train import Progress, cells
from phistill.train.data.source import Source
from phistill.train.data.stream import Rows
from phistill.train.resolve import resolve_run
from phistill.train.run import Run
from phistill.train.sweeps.cells import Cell
from phistill.train.trainer import train_runs


class ThrottledSource(Source):
    """A store that hands out at most ``bytes_per_s``, however many threads ask."""

    bytes_per_s = float("inf")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._turn = threading.Lock()
        self._free_at = 0.0

    def read(self, key: str, rows: Rows, out: Any = None) -> Any:
        found = super().read(key, rows, out)
        with self._turn:
            begun = max(time.perf_counter(), self._free_at)
            self._free_at = begun + found.nbytes / self.bytes_per_s
        time.sleep(max(0.0, self._free_at - time.perf_counter()))
        return found


RATES_AND_NORMALIZERS: dict[str, list[Any]] = {
    "normalizer": ["phi-s", "none", "pca", "standardize"],
    "lr": [1e-3, 2e-3],
}
"""Two cells of each normalizer: its targets are computed once for both."""

NORMALIZERS: dict[str, list[Any]] = {"normalizer": list(METHODS)}
"""Eight cells that share nothing but the rows."""


def sweep(options: argparse.Namespace) -> list[str]:
    """4 normalizers x 2 rates."""
    return _compared(options, RATES_AND_NORMALIZERS)


def sweep_unshared(options: argparse.Namespace) -> list[str]:
    """8 normalizers."""
    return _compared(options, NORMALIZERS)


def _compared(options: argparse.Namespace, varied: dict[str, list[Any]]) -> list[str]:
    """Small students, three ViT-S-sized teachers; 8 runs from memory, the sweep, and so on."""
    grid = _grid(options, varied)
    rounds: list[tuple[_Timed, _Timed]] = []
    with synthetic_cache(vit_sized("SSS"), options.rows, 60) as cache:
        train = _Sweeper(cache)
        train.run(grid[:1], resident=True)  # warm-up: compilation of kernels
        for number in range(options.repeats):  # each goes first in turn: neither always comes cold
            if number % 2:
                swept = train.run(grid)
            alone = _summed(train.run([cell], resident=True) for cell in grid)
            if not number % 2:
                swept = train.run(grid)
            rounds.append((alone, swept))
        streamed = _summed(train.run([cell]) for cell in grid)
    held, together = rounds[-1]
    return [
        f"{', '.join(f'{len(v)} x {k}' for k, v in varied.items())}; rows of "
        f"{train.row_bytes / 1e6:.2f} MB, {options.steps} steps of 32. Both sides log and write "
        "their last checkpoint alike. Steady: without each student's first step, which "
        "fills the heap and the optimizer's state.",
        "",
        "| last round | seconds | steady seconds | page faults | GB read | peak anonymous MB |",
        "|---|---|---|---|---|---|",
        held.line("8 runs, targets in memory"),
        streamed.line("8 runs from the cache"),
        together.line("one sweep"),
        "",
        "- sweep over 8 runs in memory, whole: " + _median([b.whole / a.whole for a, b in rounds]),
        "- the same, steady: " + _median([b.steady / a.steady for a, b in rounds]),
        "- the same, CPU seconds: " + _median([b.cpu / a.cpu for a, b in rounds]),
        f"- bytes read over 8 runs' bytes: {together.read / streamed.read:.3f}",
    ]


def throttle(options: argparse.Namespace) -> list[str]:
    """A store that gives one run a fifth of the bytes it could use; 8 runs are really run."""
    grid = _grid(options, RATES_AND_NORMALIZERS)
    with synthetic_cache(vit_sized("SSS"), options.rows, 60) as cache:
        train = _Sweeper(cache)
        train.run(grid[:1], resident=True)
        free = train.run(grid[:1])
        rate = free.read / free.whole / 5
        alone = _summed(train.run([cell], bytes_per_s=rate) for cell in grid)
        together = train.run(grid, bytes_per_s=rate)
    return [
        f"One run needs {5 * rate / 1e6:.0f} MB/s; throttled to {rate / 1e6:.0f} MB/s, "
        f"{options.steps} steps of 32:",
        "",
        f"- 8 runs one after the other: {alone.whole:.1f} s",
        f"- one sweep of the 8: {together.whole:.1f} s, {alone.whole / together.whole:.1f} times "
        "faster",
    ]


def _grid(options: argparse.Namespace, varied: dict[str, list[Any]]) -> list[Cell]:
    student = DEMO_STUDENT | {"batch_size": 32, "num_steps": options.steps, "log_every": 1}
    base = settings(**student, checkpoint_every=0, memory_bytes=0).to_dict()
    return cells({key: value for key, value in base.items() if key not in varied}, varied)


@dataclass(frozen=True)
class _Timed:
    """Seconds of wall and CPU time, seconds without first steps, faults, bytes read, peak MB."""

    whole: float
    steady: float
    cpu: float
    faults: int
    read: int
    peak: float

    def line(self, name: str) -> str:
        return (
            f"| {name} | {self.whole:.1f} | {self.steady:.1f} | {self.faults} | "
            f"{self.read / 1e9:.2f} | {self.peak:.0f} |"
        )


def _summed(runs: Iterable[_Timed]) -> _Timed:
    """Runs one after the other; the peak is the largest."""
    done = list(runs)
    sums = {
        field.name: sum(getattr(run, field.name) for run in done)
        for field in fields(_Timed)
        if field.name != "peak"
    }
    return _Timed(**sums, peak=max(run.peak for run in done))


def _median(ratios: Sequence[float]) -> str:
    listed = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    return f"{statistics.median(ratios):.3f}, the median of {listed}"


class _Sweeper:
    def __init__(self, cache: Cache) -> None:
        self.cache, self.row_bytes = cache, 0

    def run(
        self,
        grid: Sequence[Cell],
        *,
        resident: bool = False,
        bytes_per_s: float = float("inf"),
    ) -> _Timed:
        """Train cells together in a fresh folder; only the steps are timed."""
        firsts: list[float] = []

        def tell(progress: Progress) -> None:
            if progress.step == 1:
                firsts.append(time.perf_counter())

        with tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder:
            caches = open_caches(self.cache)
            runs = []
            for number, cell in enumerate(grid):
                resolved = resolve_run(caches, cell.config, ALONE.device)
                runs.append(Run(Path(folder) / str(number), resolved, ALONE, tell))
            source = ThrottledSource(caches, resolved.targets)
            source.bytes_per_s, self.row_bytes = bytes_per_s, source.row_bytes
            if resident:
                source.keep_in_memory(resolved.plan.rows)
            read, faults, cpu = bytes_read(), _faults(), time.process_time()
            begun = time.perf_counter()
            with Peak() as peak:
                train_runs(runs, source)
                ended = time.perf_counter()
            for one in runs:
                one.close()
            return _Timed(
                whole=ended - begun,
                steady=ended - firsts[-1],
                cpu=time.process_time() - cpu,
                faults=_faults() - faults,
                read=bytes_read() - read,
                peak=peak.megabytes,
            )


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
