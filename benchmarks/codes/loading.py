"""Rows of a loader and steps of a student from codes and from float16, warm and from a slow disk.

A teacher of 384 channels on 16 x 16 tokens, 64-pixel images, a small ViT; features are random. The
disk is slowed down to 100 MB/s by the kernel (blkio.throttle of a cgroup, which needs root and a
cgroup v1 hierarchy), and pages are dropped before each pass; where that cannot be, the slow columns
are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from synthetic import synthetic_cache, vit_sized

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.stats.compacting import compact_cache
from phistill.train import TrainConfig
from phistill.train.data.loader import Loader
from phistill.train.data.source import Source
from phistill.train.resolve import ResolvedRun, resolve_run
from phistill.train.step.state import TrainState

ROWS, BATCH, STEPS = 640, 32, 6
SLOW_BYTES = 100_000_000
BLKIO = Path("/sys/fs/cgroup/blkio")
ALONE = Ranks(device=torch.device("cpu"))
STUDENT = {"patch_size": 4, "embed_dim": 192, "depth": 2, "num_heads": 3}


@contextmanager
def slow_disk(folder: Path) -> Iterator[None]:
    """Reads of this process from the disk of ``folder`` at SLOW_BYTES a second, pages dropped."""
    group = BLKIO / f"phistill-{os.getpid()}"
    group.mkdir()
    try:
        device = os.stat(folder).st_dev
        limit = f"{os.major(device)}:{os.minor(device)} {SLOW_BYTES}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        yield
    finally:
        (BLKIO / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def loading(options: argparse.Namespace) -> list[str]:
    torch.set_num_threads(options.threads)
    lines = [
        f"{ROWS} rows, batches of {BATCH}, one loader thread, nothing kept in memory. Step: median "
        f"of {STEPS}; waiting: share of the time that the student waited for data. Slow: 100 MB/s.",
        "",
        "| rows | bytes a row | loader rows/s | slow | step ms | slow | waiting | slow |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with (
        synthetic_cache(vit_sized("S"), ROWS, 64) as cache,
        tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder,
    ):
        caches = {"float16": cache}
        for bits in (2, 1):
            caches[f"{bits} bits"] = compact_cache(cache, Path(folder) / str(bits), bits=bits).cache
        for name, one in caches.items():
            run, source = _run(one)
            state = TrainState(run, ALONE)
            cells = [name, f"{source.row_bytes:,}"]
            cells += _both(one, lambda r=run, s=source: f"{_rows_per_s(r, s):,.0f}")
            steps = [_steps(run, source, state)]
            if os.access(BLKIO, os.W_OK):
                with slow_disk(one.path):
                    steps.append(_steps(run, source, state))
            for values in zip(*steps, strict=True):
                cells += [*values, "-"][:2]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def _both(cache: Cache, measure: Callable[[], str]) -> list[str]:
    """Warm, and from a slow disk where one can be had."""
    measure()
    found = [measure()]
    if not os.access(BLKIO, os.W_OK):
        return [*found, "-"]
    with slow_disk(cache.path):
        return [*found, measure()]


def _run(cache: Cache) -> tuple[ResolvedRun, Source]:
    config = TrainConfig(
        device="cpu",
        tensorboard=False,
        num_steps=10_000,
        student="vit_tiny_patch16_224",
        student_options=STUDENT,
        head_width=256,
        batch_size=BATCH,
        memory_bytes=0,
    )
    run = resolve_run(open_caches(cache), config, ALONE.device)
    return run, Source(run.caches, run.targets)


def _loader(run: ResolvedRun, source: Source, stop: int = ROWS // BATCH) -> Loader:
    return Loader(
        source,
        run.plan,
        run.targets,
        start=0,
        stop=stop,
        workers=1,
        read_ahead=run.config.read_ahead,
    )


def _rows_per_s(run: ResolvedRun, source: Source) -> float:
    with _loader(run, source) as batches:
        begun = time.perf_counter()
        num = sum(len(batch.rows) for batch in batches)
        return num / (time.perf_counter() - begun)


def _steps(run: ResolvedRun, source: Source, state: TrainState) -> tuple[str, str]:
    """Median milliseconds of a step, data included, and the share of the time spent waiting."""
    seconds = []
    with _loader(run, source, STEPS) as batches:
        begun = start = time.perf_counter()
        for batch in batches:
            state.train_step(batch)
            now = time.perf_counter()
            seconds.append(now - begun)
            begun = now
        return f"{statistics.median(seconds) * 1e3:.0f}", f"{batches.wait_s / (begun - start):.0%}"
