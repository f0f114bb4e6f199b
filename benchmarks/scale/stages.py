"""One stage in a process of its own: its seconds, CPU seconds and largest anonymous memory.

    python benchmarks/scale/stages.py STAGE CACHE [OTHER]

prints them as JSON. What a stage needs is imported before the clock starts, and so is torch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import numpy as np
from machine import Peak, anonymous_mb

import phistill.cache as store

Work = Callable[[], object]


def open_it(path: str) -> Work:
    """The cache, and which shards each owner committed."""

    def work() -> None:
        cache = store.open(path)
        for owner in cache.owners:
            assert len(cache.commits(owner)) == cache.info.num_shards

    return work


def inspect(path: str) -> Work:
    from phistill.report.inspection import describe

    return lambda: describe(path)


def rows(path: str) -> Work:
    cache = store.open(path)
    return lambda: cache.rows(None, "train")


def index(path: str) -> Work:
    cache = store.open(path)
    return cache.index


def plan(path: str) -> Work:
    """The plan of a run, and the rows of its first step."""
    from phistill.cache.joined import open_caches
    from phistill.train import TrainConfig
    from phistill.train.data.plan import make_plan

    caches = open_caches(store.open(path))
    return lambda: make_plan(caches, TrainConfig(memory_bytes=0)).step(0)


def plan_of_statistics(path: str) -> Work:
    """Every array's plan, and the pieces of its first and last group."""
    from phistill.stats.fit.pieces import PassOptions, plan_array

    cache = store.open(path)

    def work() -> None:
        for name in cache.teachers:
            for kind in cache.teacher(name).kinds:
                groups = plan_array(cache, name, kind, PassOptions()).groups
                assert groups[0].pieces
                assert groups[-1].pieces

    return work


def first_batch(path: str) -> Work:
    """From ``train`` to the first batch: open, resolve, plan, read."""
    import torch

    from phistill.cache.joined import open_caches
    from phistill.train.data.loader import Loader
    from phistill.train.data.source import open_source
    from phistill.train.resolve import resolve_run

    config = small_run()

    def work() -> None:
        run = resolve_run(open_caches(path), config, torch.device("cpu"))
        source = open_source(run.caches, run.targets, run.plan)
        with Loader(source, run.plan, run.targets, start=0, stop=2) as loader:
            next(iter(loader))

    return work


def small_run() -> Any:
    """The settings of the run whose start is measured."""
    from phistill.train import TrainConfig

    return TrainConfig(
        memory_bytes=0, num_steps=100, device="cpu", batch_size=128, loader_workers=0
    )


def rejects(path: str) -> Work:
    """What stands in the way of further rejects, counted once and then with every shard."""
    from phistill.pipeline.rejects import RejectBudget

    cache = store.open(path)
    record = cache.commits(cache.owners[0])[0]

    def work() -> None:
        budget = RejectBudget(cache, 1.0)
        for _ in range(cache.info.num_shards):
            budget.spend(record)

    return work


def merge(path: str, other: str) -> Work:
    from phistill.cache.upkeep.merge import merge as merge_caches

    target, source = store.open(path), store.open(other)
    return lambda: merge_caches(target, source)


def append(path: str, count: str) -> Work:
    """So many segments of one shard, and the cache opened again."""
    from build import SHARD_ROWS, index_of

    from phistill.cache.upkeep.append import add_segment

    cache = store.open(path)

    def work() -> None:
        for number in range(int(count)):
            first = (number + 1) * 10**6
            add_segment(cache, index_of(SHARD_ROWS, first, first_row=cache.info.next_row))
        store.open(path).rows(None, "all")

    return work


def order(num_rows: str) -> Work:
    """The order of an epoch of so many rows: the set, and 1,000 batches of 1,024 from anywhere."""
    from phistill.cache.order import EpochOrder
    from phistill.cache.row_set import RowSet

    num = int(num_rows)
    kept = np.arange(num)
    kept = kept[kept % 50 != 0]

    def work() -> None:
        some = RowSet(kept)
        for mode in ("full", "block"):
            one = EpochOrder(rows=some, seed=0, epoch=3, mode=mode, block_rows=256)
            for number in range(500):
                first = (number * 7919 * 1024) % (len(some) - 1024)
                one.between(first, first + 1024)

    return work


def sharing(path: str) -> Work:
    """What a rank holds, for as long as somebody looks: it says how much anonymous memory that is,
    in MiB, and waits for a line."""
    import torch

    from phistill.cache.joined import open_caches
    from phistill.train.resolve import resolve_run

    def work() -> None:
        before = anonymous_mb()
        run = resolve_run(open_caches(path), small_run(), torch.device("cpu"))
        run.plan.step(0)
        sys.stdout.write(f"{anonymous_mb() - before}\n")
        sys.stdout.flush()
        sys.stdin.readline()

    return work


STAGES: dict[str, Callable[..., Work]] = {
    "open": open_it,
    "inspect": inspect,
    "rows": rows,
    "index": index,
    "plan": plan,
    "first batch": first_batch,
    "plan of fit-stats": plan_of_statistics,
    "rejects": rejects,
    "merge": merge,
    "append": append,
    "order": order,
    "sharing": sharing,
}


def main() -> None:
    name, *arguments = sys.argv[1:]
    tempfile.gettempdir()
    work = STAGES[name](*arguments)
    before = anonymous_mb()
    with Peak(0.005) as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    largest = max(peak.megabytes, anonymous_mb())
    taken |= {"megabytes": largest - before, "before_mb": before}
    sys.stdout.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    main()
