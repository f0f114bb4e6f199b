"""Vectors per second of fit-stats against bare products, dask.array and scikit-learn."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from features import TOKENS, WIDTH, make_cache, num_rows_of
from measuring import in_turns, ratios, spread
from synthetic import warm

from phistill.cache import Cache
from phistill.stats import fit_stats

OURS = "fit-stats, end to end"
PRODUCTS = 24
"""Products of 32,768 vectors per repeat."""


def throughput(options: argparse.Namespace) -> list[str]:
    """Interleaved repeats of every contender; vectors per second, medians, ratios to ours."""
    num_rows = num_rows_of(options.gib)
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder) / "bench.cache", num_rows)
        warm(cache)
        contenders = _contenders(cache)
        works = {name: work for name, (work, _) in contenders.items()}
        found = in_turns(works, options.repeats)
    times = {name: [s / contenders[name][1] for s in values] for name, values in found.items()}
    lines = [
        f"{num_rows:,} rows of 256 x 1024 float16 ({options.gib:g} GiB), page cache warm, "
        f"{options.repeats} interleaved repeats: median (smallest to largest); ratios within a "
        "repeat.",
        "",
        "| contender | vectors/s | fit-stats is faster by |",
        "|---|---|---|",
    ]
    for name, values in times.items():
        rates = [1 / value for value in values]
        faster = ratios(values, by=times[OURS])
        lines.append(f"| {name} | {spread(rates, ',.0f')} | {spread(faster, '.2f')} |")
    return lines


def _contenders(cache: Cache) -> dict[str, tuple[Callable[[], object], int]]:
    """What is run, and over how many vectors."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    small = cache.reader("t0", "patches").read(np.arange(128)).reshape(-1, WIDTH)
    x = torch.from_numpy(small.astype(np.float32))
    single = small[: 10 * 1024]
    torch.mm(x.T, x)
    return {
        OURS: (lambda: _fit_anew(cache), cache.num_rows * TOKENS),
        # As long as fit-stats takes, or the noise of the machine decides.
        "torch.mm(X.T, X), float32, in memory": (
            lambda: [torch.mm(x.T, x) for _ in range(PRODUCTS)],
            PRODUCTS * len(x),
        ),
        "dask.array.cov, in memory": (lambda: _dask_cov(small), len(small)),
        "scikit-learn IncrementalPCA, in memory": (lambda: _ipca(single), len(single)),
    }


def _fit_anew(cache: Cache) -> object:
    for teacher in cache.teachers:
        for part in ("moments", "normalizers"):
            shutil.rmtree(cache.path / "teachers" / teacher / part, ignore_errors=True)
    return fit_stats(cache)


def _dask_cov(values: np.ndarray) -> object:
    import dask.array as da

    lazy = da.from_array(values, chunks=(8192, WIDTH))
    return da.cov(lazy.astype(np.float64), rowvar=False).compute()


def _ipca(values: np.ndarray) -> object:
    from sklearn.decomposition import IncrementalPCA

    return IncrementalPCA(batch_size=5 * WIDTH).fit(values.astype(np.float32))
