"""How fast rows arrive, what they cost, and how long a student waits for them."""

from __future__ import annotations

import argparse
import statistics
import time

from steps import ALONE, VIT_S, loader_of, settings
from synthetic import synthetic_cache, vit_sized

from phistill.cache.joined import open_caches
from phistill.train.data.source import Source
from phistill.train.resolve import ResolvedRun, resolve_run


def loader(options: argparse.Namespace) -> list[str]:
    """Three ViT-B-sized teachers and 224-pixel images: how fast rows arrive, and what it costs."""
    lines = ["| workers | rows/s | MB/s | CPU-ms per row |", "|---|---|---|---|"]
    with synthetic_cache(vit_sized("BBB"), options.rows, 224) as cache:
        for workers in (0, 1, 2):
            config = settings(**VIT_S | {"batch_size": 32}, loader_workers=workers, memory_bytes=0)
            run = resolve_run(open_caches(cache), config, ALONE.device)
            source = Source(run.caches, run.targets)
            speeds, costs = [], []
            for _ in range(options.repeats):
                with loader_of(run, source, 0, options.steps) as batches:
                    begun, cpu = time.perf_counter(), time.process_time()
                    num = sum(len(batch.rows) for batch in batches)
                    speeds.append(num / (time.perf_counter() - begun))
                    costs.append((time.process_time() - cpu) / num * 1e3)
            speed, cost = statistics.median(speeds), statistics.median(costs)
            lines.append(
                f"| {workers} | {speed:.0f} | {speed * source.row_bytes / 1e6:.0f} | {cost:.2f} |"
            )
        lines += ["", f"A row is {source.row_bytes / 1e6:.2f} MB.", "", *_sleeping(run, source)]
    return lines


def _sleeping(run: ResolvedRun, source: Source) -> list[str]:
    """A student that sleeps a fixed time per step of 32 rows and computes nothing."""
    lines = ["| sleep per step | rows/s asked for | waiting share |", "|---|---|---|"]
    for sleep_s in (0.8, 0.4, 0.2, 0.1):
        shares = []
        for _ in range(3):
            with loader_of(run, source, 0, 20) as batches:
                begun, waited = time.perf_counter(), 0.0
                for number, _ in enumerate(batches):
                    if number == 0:  # the first batch has nothing to hide behind
                        begun, waited = time.perf_counter(), batches.wait_s
                    time.sleep(sleep_s)
                shares.append((batches.wait_s - waited) / (time.perf_counter() - begun))
        lines.append(f"| {sleep_s:.1f} s | {32 / sleep_s:.0f} | {statistics.median(shares):.2%} |")
    return lines
