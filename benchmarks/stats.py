"""Speed, memory and accuracy of the statistics; every comparison is a ratio within one run.

    python benchmarks/stats.py throughput --gib 4     fit-stats against bare products and others
    python benchmarks/stats.py memory                 peak memory against rows
    python benchmarks/stats.py growth                 second run, 10 % more images, a new teacher
    python benchmarks/stats.py widths                 a rotation for every width 1..2048
    python benchmarks/stats.py fwht                   the Hadamard product, fast and plain
    python benchmarks/stats.py errors                 moments against two-pass float64
    python benchmarks/stats.py heldout --cache DIR    channel variances on held-out images

Each prints a Markdown section; `--out FILE` appends it there. The cache is synthetic, 256 x 1024
float16 per row, made in a temporary folder and read once before anything is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.stats import Moments, Normalizer, fit_stats, fitted
from phistill.stats.blas import one_blas_thread
from phistill.stats.hadamard import factorize, hadamard, is_hadamard, sylvester
from phistill.stats.heldout import heldout_variances
from phistill.stats.rotation import rotation

TOKENS, WIDTH, SHARD_ROWS = 256, 1024, 128
ROW_BYTES = TOKENS * WIDTH * 2


def make_cache(folder: Path, num_rows: int, teachers: int = 1) -> Cache:
    """A cache of correlated features whose shards differ only in the order of their rows."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.5, 2.0, WIDTH, dtype=np.float32)
    base = rng.standard_normal((SHARD_ROWS, TOKENS, WIDTH), dtype=np.float32) * scale + 1
    base += rng.standard_normal((SHARD_ROWS, 1, WIDTH), dtype=np.float32)
    shard_values = base.astype(np.float16)
    info = CacheInfo(
        seed=0,
        shard_rows=SHARD_ROWS,
        holdout=0.0,
        pixel_size=0,
        views=({"kind": "resize"},),
        decode={},
    )
    cache = store.create(folder, info, index_of(0, num_rows))
    for number in range(teachers):
        add_teacher(cache, f"t{number}", shard_values)
    return cache


def index_of(start: int, num_rows: int) -> pa.Table:
    return pa.table(
        {
            "row": np.arange(start, start + num_rows),
            "id": [f"{row:08d}" for row in range(start, start + num_rows)],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["none"] * num_rows,
            "offset": np.arange(start, start + num_rows),
            "length": np.full(num_rows, -1),
        }
    )


def add_teacher(cache: Cache, name: str, values: np.ndarray) -> None:
    cache.add_teacher(TeacherInfo(name=name, grid=(16, 16), widths={"patches": WIDTH}))
    commit_missing(cache, name, values)


def commit_missing(cache: Cache, name: str, values: np.ndarray) -> None:
    for shard in sorted(set(cache.info.shards()) - set(cache.commits(name))):
        start, stop = cache.info.shard_range(shard)
        count = stop - start
        digests = (hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, stop))
        facts = ImageFacts(
            sha256=tuple(digests), size=((8, 8),) * count, box=((0, 0, 8, 8),) * count
        )
        arrays = {"patches": np.roll(values, shard, axis=0)[:count]}
        cache.commit_shard(name, shard, arrays, images=facts, reasons={}, environment={})


def forget(cache: Cache) -> None:
    for teacher in cache.teachers:
        for part in ("moments", "normalizers"):
            shutil.rmtree(cache.path / "teachers" / teacher / part, ignore_errors=True)


def warm(cache: Cache) -> None:
    for path in cache.path.glob("teachers/*/patches/c/*/*/*"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def quick_rows(cache: Cache, num_rows: int) -> np.ndarray:
    return cache.reader("t0", "patches").read(np.arange(num_rows)).reshape(-1, WIDTH)


PRODUCTS = 24
"""Products of 32,768 vectors per repeat."""


def throughput(gib: float, repeats: int) -> list[str]:
    """Interleaved repeats of every contender; vectors per second, medians, ratios to ours."""
    import torch

    num_rows = _rows(gib)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder) / "bench.cache", num_rows)
        warm(cache)
        small = quick_rows(cache, 128)  # 32,768 vectors in memory
        x = torch.from_numpy(small.astype(np.float32))
        single = small[: 10 * 1024]

        def ours() -> object:
            forget(cache)
            return fit_stats(cache)

        contenders: dict[str, tuple[Callable[[], object], int]] = {
            "fit-stats, end to end": (ours, num_rows * TOKENS),
            # As long as fit-stats takes, or the noise of the machine decides.
            "torch.mm(X.T, X), float32, in memory": (
                lambda: [torch.mm(x.T, x) for _ in range(PRODUCTS)],
                PRODUCTS * len(x),
            ),
            "dask.array.cov, in memory": (lambda: _dask_cov(small), len(small)),
            "scikit-learn IncrementalPCA, in memory": (lambda: _ipca(single), len(single)),
        }
        torch.mm(x.T, x)
        for _ in range(repeats):
            for name, (work, vectors) in contenders.items():
                times.setdefault(name, []).append(seconds(work) / vectors)
    mine = times["fit-stats, end to end"]
    lines = [
        f"{num_rows:,} rows of 256 x 1024 float16 ({gib:g} GiB), page cache warm, "
        f"{repeats} interleaved repeats: median (smallest .. largest); ratios within a repeat.",
        "",
        "| contender | vectors/s | fit-stats is faster by |",
        "|---|---|---|",
    ]
    for name, values in times.items():
        rates = [1 / value for value in values]
        ratios = [value / ours_s for value, ours_s in zip(values, mine, strict=True)]
        lines.append(f"| {name} | {_spread(rates, ',.0f')} | {_spread(ratios, '.2f')} |")
    return lines


def _spread(values: list[float], style: str) -> str:
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:{style}} ({low:{style}} .. {high:{style}})"


def _dask_cov(values: np.ndarray) -> object:
    import dask.array as da

    lazy = da.from_array(values, chunks=(8192, WIDTH))
    return da.cov(lazy.astype(np.float64), rowvar=False).compute()


def _ipca(values: np.ndarray) -> object:
    from sklearn.decomposition import IncrementalPCA

    return IncrementalPCA(batch_size=5 * WIDTH).fit(values.astype(np.float32))


_MEASURE = """
import json, sys, threading
import phistill.cache as store
from phistill.stats import fit_stats
cache = store.open(sys.argv[1])
done, peak = threading.Event(), 0
def watch():
    global peak
    while not done.wait(0.005):
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]))
watcher = threading.Thread(target=watch)
watcher.start()
fit_stats(cache)
done.set()
watcher.join()
print(json.dumps(peak))
"""


def memory(sizes: list[int]) -> list[str]:
    """Peak anonymous memory of a fresh process over growing caches, looked at every 5 ms."""
    lines = ["| rows | features | peak RssAnon |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for num_rows in sizes:
            cache = make_cache(Path(folder) / f"{num_rows}.cache", num_rows)
            output = subprocess.run(
                [sys.executable, "-c", _MEASURE, str(cache.path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            peak = json.loads(output) / 1024
            size = num_rows * ROW_BYTES / 2**30
            lines.append(f"| {num_rows:,} | {size:.2f} GiB | {peak:,.0f} MiB |")
            shutil.rmtree(cache.path)
    return lines


def growth(num_rows: int) -> list[str]:
    """What a run costs when most of it is there already."""
    extra = num_rows // 10 // SHARD_ROWS * SHARD_ROWS
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder) / "bench.cache", num_rows)
        values = cache.reader("t0", "patches").read_shard(0)
        warm(cache)
        whole = _both_seconds(cache)
        again = _both_seconds(cache)
        store.growth.add_segment(cache, index_of(store.growth.next_row(cache.info), extra))
        commit_missing(cache, "t0", values)
        warm(cache)
        grown = _both_seconds(cache)
        add_teacher(cache, "t1", values)
        warm(cache)
        teacher = _both_seconds(cache)
    runs = (
        ("first", num_rows, whole),
        ("again, nothing new", 0, again),
        (f"{extra / num_rows:.0%} more images", extra, grown),
        ("a second teacher", num_rows + extra, teacher),
    )
    return [
        f"{num_rows:,} rows of one teacher, then {extra:,} more, then a second teacher of all.",
        "",
        "| run | new rows | share of the first | CPU seconds | share | seconds | share |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {rows:,} | {rows / num_rows:.3f} | {cpu:.2f} | {cpu / whole[0]:.3f} "
            f"| {wall:.2f} | {wall / whole[1]:.3f} |"
            for name, rows, (cpu, wall) in runs
        ),
    ]


def _both_seconds(cache: Cache) -> tuple[float, float]:
    """CPU seconds of this process, and wall seconds, of one fit-stats."""
    begin = time.process_time()
    wall = seconds(lambda: fit_stats(cache))
    return time.process_time() - begin, wall


def fwht(sizes: tuple[int, ...] = (256, 1024, 2048)) -> list[str]:
    """Where a fast Walsh-Hadamard transform could stand: the product with H, once per fit."""
    lines = [
        "One thread, float64, CPU time, median of 9. H U^T is made once per fit, beside one eigh.",
        "",
        "| width | H @ U^T | butterflies on U^T | same values | eigh of the covariance |",
        "|---|---|---|---|---|",
    ]
    for c in sizes:
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(c, c)))[0]
        covariance = (basis * np.arange(1, c + 1) ** -1.0) @ basis.T
        matrix = sylvester(c).astype(np.float64)
        with one_blas_thread():
            works = (partial(np.matmul, matrix, basis), partial(_butterflies, basis))
            times = [statistics.median(_cpu_seconds(work) for _ in range(9)) for work in works]
            times.append(_cpu_seconds(partial(np.linalg.eigh, covariance)))
            same = bool(np.allclose(works[0](), works[1](), rtol=0, atol=1e-9))
        plain, fast, whole = (f"{1e3 * value:.1f} ms" for value in times)
        lines.append(f"| {c} | {plain} | {fast} | {same} | {whole} |")
    return lines


def _cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _butterflies(x: np.ndarray) -> np.ndarray:
    """Sylvester's H times x (c, k), c a power of two, in c log2(c) k additions."""
    c, k = x.shape
    for level in range(c.bit_length() - 1):
        pairs = x.reshape(-1, 2, 2**level, k)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
    return x.reshape(c, k)


def widths(last: int) -> list[str]:
    """Every width: constant diagonal, orthogonality, time, and the integer check."""
    worst = {"spread": (0.0, 0), "orthogonality": (0.0, 0), "seconds": (0.0, 0)}
    reached, general = 0, 0
    for c in range(1, last + 1):
        values = np.arange(1, c + 1) ** -1.5
        begin = time.process_time()
        r, _ = rotation(values)
        taken = time.process_time() - begin
        spread = float(np.max(np.abs(np.square(r) @ values / values.mean() - 1)))
        defect = float(np.max(np.abs(r @ r.T - np.eye(c))))
        for name, value in (("spread", spread), ("orthogonality", defect), ("seconds", taken)):
            worst[name] = max(worst[name], (value, c))
        if factorize(c) is None:
            general += 1
        else:
            found = hadamard(c)
            assert found is not None
            assert is_hadamard(found[0]), c
            reached += 1
    return [
        f"Widths 1..{last}: {reached} integer Hadamard matrices, each checked exactly, and "
        f"{general} by Hartley then Givens; eigenvalues i^-1.5.",
        "",
        "| worst of all widths | value | at width |",
        "|---|---|---|",
        f"| relative spread of the diagonal | {worst['spread'][0]:.1e} | {worst['spread'][1]} |",
        f"| entry of R R^T - I | {worst['orthogonality'][0]:.1e} | {worst['orthogonality'][1]} |",
        f"| CPU seconds for one rotation | {worst['seconds'][0]:.2f} | {worst['seconds'][1]} |",
    ]


def errors(n: int = 100_000, c: int = 64) -> list[str]:
    """Errors of the moments against two passes in extended precision, and of PHI-S on them."""
    lines = [
        f"n = {n:,} float32 vectors of width {c}. Error of scatter entry ij relative to "
        "sqrt(S_ii S_jj), largest entry; channel variance of phi-s output on the same data.",
        "",
        "| data | one pass, float32 | default | exact | channel variance - 1 |",
        "|---|---|---|---|---|",
    ]
    for name, x in _hard_cases(n, c).items():
        reference = _two_pass(x)
        fitted = Normalizer.fit(Moments.of(x))
        variance = fitted.transform(x.astype(np.float64)).var(axis=0)
        cells = [
            _relative(_one_pass(x), reference),
            _relative(Moments.of(x).scatter, reference),
            _relative(Moments.of(x, exact=True).scatter, reference),
            float(np.max(np.abs(variance - 1))),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |")
    return lines


def _hard_cases(n: int, c: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, c))
    z += 0.5 * z[:, :1]
    sign = rng.choice([-1.0, 1.0], size=c)
    dead = np.where(np.arange(c) < c // 10, 1.0, 0.0)
    cases = {
        "standard normal": z,
        "mean/std = 100": z + 100 * sign,
        "mean/std = 10,000": z + 1e4 * sign,
        "std = 1e-6": z * 1e-6,
        "std = 1,000": z * 1e3,
        "variance ratio 1e12": z * np.logspace(0, -6, c),
        "90 % dead channels": z * dead + 0.7,
        "rank 8": rng.normal(size=(n, 8)) @ rng.normal(size=(8, c)),
        "fewer vectors (40) than channels": z[:40],
        "sorted, drifting by 500 std": z + np.linspace(0, 500, n)[:, None],
        "Student-t(3)": rng.standard_t(3, size=(n, c)),
    }
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in cases.items()}


def _two_pass(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.longdouble)
    centred = (wide - wide.mean(axis=0)).astype(np.float64)
    return centred.T @ centred


def _one_pass(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    return (x.T @ x - len(x) * np.outer(mean, mean)).astype(np.float64)


def _relative(scatter: np.ndarray, reference: np.ndarray) -> float:
    size = np.sqrt(np.diagonal(reference))
    size = np.where(size > 0, size, np.inf)
    return float(np.max(np.abs(scatter - reference) / np.outer(size, size)))


def heldout(path: Path) -> list[str]:
    """Variances of normalised channels: on the rows they were fitted on, and on held-out ones."""
    cache = store.open(path)
    fit_stats(cache)
    lines = [
        "| teacher, kind | method | own rows, max abs(var - 1) | held-out rows | min | mean | max "
        "| expected for so many images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).kinds:
            x = cache.reader(teacher, kind).read(cache.rows([teacher]))
            for row in heldout_variances(cache, teacher, kind):
                y = fitted(cache, teacher, kind, row.method).transform(x)
                variance = y.reshape(-1, y.shape[-1]).var(axis=0, dtype=np.float64)
                lines.append(
                    f"| {teacher} {kind} | {row.method} | {np.max(np.abs(variance - 1)):.1e} "
                    f"| {row.num_rows} | {row.variance_min:.3f} | {row.variance_mean:.3f} "
                    f"| {row.variance_max:.3f} | {row.expected_min:.2f} .. {row.expected_max:.2f} |"
                )
    return lines


def hardware() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {model}, {cores} cores, load {load:.1f} at the start, "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )


def _rows(gib: float) -> int:
    return int(gib * 2**30 / ROW_BYTES)


def main() -> None:
    sections: dict[str, Callable[[argparse.Namespace], list[str]]] = {
        "throughput": lambda given: throughput(given.gib, given.repeats),
        "memory": lambda given: memory([_rows(given.gib) // part for part in (8, 4, 2, 1)]),
        "growth": lambda given: growth(_rows(given.gib)),
        "widths": lambda given: widths(given.last),
        "errors": lambda _: errors(),
        "fwht": lambda _: fwht(),
        "heldout": lambda given: heldout(given.cache),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=list(sections))
    parser.add_argument("--gib", type=float, default=4.0, help="size of the cache")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--last", type=int, default=2048, help="last width")
    parser.add_argument("--cache", type=Path, help="an existing cache, for heldout")
    parser.add_argument("--out", type=Path, help="append the section to this file")
    options = parser.parse_args()
    title = f"## {options.what}\n\n{hardware()}\n"
    lines = sections[options.what](options)
    section = "\n".join([title, *lines, ""])
    sys.stdout.write(section)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(section + "\n")


if __name__ == "__main__":
    main()
