"""Speed and memory of training; every comparison is a ratio within one run.

    python benchmarks/train.py loader     rows/s, CPU per row, waiting of a student that only sleeps
    python benchmarks/train.py memory     step time from the cache over step time from memory
    python benchmarks/train.py live       images/s from the cache over images/s with live teachers
    python benchmarks/train.py sweep      8 settings in one pass against 8 runs
    python benchmarks/train.py leaks      anonymous memory and descriptors of a 50x longer run

Each prints a Markdown section; ``--out FILE`` appends it there. Caches are synthetic, made in a
temporary folder and read once before anything is timed, so "from the cache" means through the
reader, its checksums and the page cache, not from a cold disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.stats import fit_stats
from phistill.train import TrainConfig, cells
from phistill.train.data import Loader, Source
from phistill.train.lesson import Lesson, prepare
from phistill.train.loop import run_steps
from phistill.train.plan import Rows
from phistill.train.ranks import Ranks
from phistill.train.run import Run
from phistill.train.trainee import Trainee

ALONE = Ranks(device=torch.device("cpu"))
WIDTHS = {"S": 384, "B": 768, "L": 1024}
"""Of ViT-S, B and L; at 224 pixels and patches of 14 each has 16 x 16 tokens."""

DEMO = (
    TeacherInfo(name="clip", grid=(6, 6), widths={"patches": 128, "summary": 128}),
    TeacherInfo(name="ssl", grid=(6, 6), widths={"patches": 160, "summary": 160}),
    TeacherInfo(name="mask", grid=(12, 12), widths={"patches": 188}),
)
"""The shapes of the bundled teachers."""

DEMO_STUDENT: dict[str, Any] = {
    "student": "vit_tiny_patch16_224",
    "student_options": {"patch_size": 10, "embed_dim": 192, "depth": 4, "num_heads": 3},
    "head_width": 256,
    "batch_size": 48,
}
VIT_S: dict[str, Any] = {"student": "vit_small_patch16_224", "batch_size": 16}


def vit_sized(letters: str) -> list[TeacherInfo]:
    """Teachers of ViT widths, one per letter."""
    return [
        TeacherInfo(
            name=f"vit-{letter}{number}".lower(),
            grid=(16, 16),
            widths={"patches": WIDTHS[letter], "summary": WIDTHS[letter]},
        )
        for number, letter in enumerate(letters)
    ]


@contextmanager
def synthetic_cache(
    teachers: Sequence[TeacherInfo], num_rows: int, pixel_size: int, shard_rows: int = 32
) -> Iterator[Cache]:
    """A cache of Gaussian features with statistics, read once."""
    with tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder:
        cache = _write(Path(folder) / "bench.cache", teachers, num_rows, pixel_size, shard_rows)
        fit_stats(cache, workers=1, max_images=64)
        for owner in cache.owners:
            for kind in cache.shapes(owner):
                for shard in cache.commits(owner):
                    cache.reader(owner, kind).read_shard(shard)
        yield cache


def _write(
    path: Path, teachers: Sequence[TeacherInfo], num_rows: int, pixel_size: int, shard_rows: int
) -> Cache:
    fields: dict[str, Any] = {
        "seed": 0,
        "shard_rows": shard_rows,
        "holdout": 0.0,
        "pixel_size": pixel_size,
        "views": ({"kind": "resize"},),
        "decode": {},
    }
    index = pa.table(
        {
            "row": np.arange(num_rows),
            "id": [f"{row:08d}" for row in range(num_rows)],
            "view": np.zeros(num_rows, np.int32),
            "uri": ["none"] * num_rows,
            "offset": np.arange(num_rows),
            "length": np.full(num_rows, -1),
        }
    )
    cache = store.create(path, CacheInfo(**fields), index)
    for teacher in teachers:
        cache.add_teacher(teacher)
    generator = np.random.default_rng(0)
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        num = stop - start
        names = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(start, stop)]
        size = (pixel_size, pixel_size)
        images = ImageFacts(sha256=tuple(names), size=(size,) * num, box=((0, 0, *size),) * num)
        common: dict[str, Any] = {"images": images, "reasons": {}, "environment": {}}
        pixels = generator.integers(0, 256, (num, pixel_size, pixel_size, 3), np.uint8)
        cache.commit_shard("pixels", shard, {"pixels": pixels}, **common)
        for teacher in teachers:
            arrays = {
                kind: generator.standard_normal((num, *teacher.row_shape(kind)), np.float32).astype(
                    np.float32 if kind == "summary" else np.float16
                )
                for kind in teacher.kinds
            }
            cache.commit_shard(teacher.name, shard, arrays, **common)
    return cache


def settings(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"device": "cpu", "tensorboard": False, "num_steps": 10_000}
    return TrainConfig(**{**base, **changes})


def trainee_of(lesson: Lesson) -> Trainee:
    return Trainee(
        lesson.config,
        lesson.targets,
        lesson.normalizers,
        dispersions=lesson.dispersions,
        image_size=lesson.image_size,
        num_steps=lesson.plan.num_steps,
        precision=lesson.precision,
        ranks=ALONE,
    )


def loader_of(lesson: Lesson, source: Source, start: int, stop: int) -> Loader:
    return Loader(
        source,
        lesson.plan,
        lesson.targets,
        start=start,
        stop=stop,
        workers=0 if source.is_resident else lesson.config.loader_workers,
        read_ahead=lesson.config.read_ahead,
    )


# ---- loader ------------------------------------------------------------------------------------


def loader(options: argparse.Namespace) -> list[str]:
    """Three ViT-B-sized teachers and 224-pixel images: how fast rows arrive, and what it costs."""
    lines = ["| workers | rows/s | MB/s | CPU-ms per row |", "|---|---|---|---|"]
    with synthetic_cache(vit_sized("BBB"), options.rows, 224) as cache:
        for workers in (0, 1, 2):
            config = settings(**VIT_S | {"batch_size": 32}, loader_workers=workers, memory_bytes=0)
            lesson = prepare(cache, config, ALONE.device)
            source = Source(cache, lesson.targets)
            speeds, costs = [], []
            for _ in range(options.repeats):
                with loader_of(lesson, source, 0, options.steps) as batches:
                    begun, cpu = time.perf_counter(), time.process_time()
                    num = sum(len(batch.rows) for batch in batches)
                    speeds.append(num / (time.perf_counter() - begun))
                    costs.append((time.process_time() - cpu) / num * 1e3)
            speed, cost = statistics.median(speeds), statistics.median(costs)
            lines.append(
                f"| {workers} | {speed:.0f} | {speed * source.row_bytes / 1e6:.0f} | {cost:.2f} |"
            )
        lines += ["", f"A row is {source.row_bytes / 1e6:.2f} MB.", "", *_sleeping(lesson, source)]
    return lines


def _sleeping(lesson: Lesson, source: Source) -> list[str]:
    """A student that sleeps a fixed time per step of 32 rows and computes nothing."""
    lines = ["| sleep per step | rows/s asked for | waiting share |", "|---|---|---|"]
    for sleep_s in (0.8, 0.4, 0.2, 0.1):
        shares = []
        for _ in range(3):
            with loader_of(lesson, source, 0, 20) as batches:
                begun, waited = time.perf_counter(), 0.0
                for number, _ in enumerate(batches):
                    if number == 0:  # the first batch has nothing to hide behind
                        begun, waited = time.perf_counter(), batches.wait_s
                    time.sleep(sleep_s)
                shares.append((batches.wait_s - waited) / (time.perf_counter() - begun))
        lines.append(f"| {sleep_s:.1f} s | {32 / sleep_s:.0f} | {statistics.median(shares):.2%} |")
    return lines


# ---- memory ------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> list[str]:
    """Steps of a ViT-S student on three ViT-B-sized teachers, and of the demo's student on its own.

    The same trainee takes turns: a block of steps from the cache, one from memory, and so on.
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
            lesson = prepare(cache, settings(**student), ALONE.device)
            sources = {"cache": Source(cache, lesson.targets), "mem": Source(cache, lesson.targets)}
            sources["mem"].keep_in_memory(lesson.plan.rows)
            trainee = trainee_of(lesson)
            found: dict[str, list[Steps]] = {"cache": [], "mem": []}
            _steps(trainee, lesson, sources["mem"], 2)
            for _ in range(options.repeats):
                for kind, source in sources.items():
                    found[kind].append(_steps(trainee, lesson, source, steps))
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


@dataclass(frozen=True)
class Steps:
    """A block of steps: seconds of each, data included; CPU seconds of all; seconds waited."""

    seconds: list[float]
    cpu_s: float
    wait_s: float


def _steps(trainee: Trainee, lesson: Lesson, source: Source, num: int) -> Steps:
    """``num`` steps; the first one after a change of source has nothing read ahead and is extra."""
    seconds: list[float] = []
    with loader_of(lesson, source, 0, num + 1) as batches:
        begun = cpu = time.perf_counter()
        waited = 0.0
        for batch in batches:
            trainee.learn(batch)
            now = time.perf_counter()
            seconds.append(now - begun)
            begun = now
            if batch.step == 0:
                cpu, waited = time.process_time(), batches.wait_s
        return Steps(seconds[1:], time.process_time() - cpu, batches.wait_s - waited)


# ---- live --------------------------------------------------------------------------------------


def live(options: argparse.Namespace) -> list[str]:
    """The online baseline: the teacher's forward in each step, then the same step.

    Teachers have random weights, run under no_grad in the student's own precision, on the same
    uint8 pixels at their own size: what remains is resizing, normalising and the forward. Reading
    and decoding files, which a live run also does, is left out, in favour of the live run.
    """
    import timm

    lines = [
        "| teachers | student | live images/s | cached images/s | cached over live |",
        "|---|---|---|---|---|",
    ]
    demo = [
        (timm.create_model("vit_tiny_patch16_224", **shape), size) for shape, size in _demo_nets()
    ]
    cases: list[tuple[str, list[TeacherInfo], int, dict[str, Any], list[Any]]] = [
        ("the demo's three", list(DEMO), 60, DEMO_STUDENT, demo)
    ]
    for letter, model in (("S", "small"), ("B", "base"), ("L", "large")):
        name = f"vit_{model}_patch14_dinov2"
        net = [(name, 224)] if letter in options.sizes else []
        nets = [(timm.create_model(n, img_size=s, num_classes=0), s) for n, s in net]
        if nets:
            student = VIT_S | {"batch_size": 8}
            cases.append((f"one ViT-{letter}/14", vit_sized(letter), 224, student, nets))
    for name, teachers, pixels, student, nets in cases:
        with synthetic_cache(teachers, 4 * student["batch_size"], pixels) as cache:
            lesson = prepare(cache, settings(**student), ALONE.device)
            trainee, source = trainee_of(lesson), Source(cache, lesson.targets)
            source.keep_in_memory(lesson.plan.rows)
            streamed = Source(cache, lesson.targets)
            _steps(trainee, lesson, source, 2)
            cached: list[float] = []
            online: list[float] = []
            for _ in range(options.repeats):
                cached += _steps(trainee, lesson, streamed, options.steps).seconds
                forward = _forward_seconds(nets, cache, student["batch_size"], lesson.precision)
                held = _steps(trainee, lesson, source, options.steps).seconds
                online.append(statistics.median(held) + forward)
        rates = [student["batch_size"] / statistics.median(times) for times in (online, cached)]
        lines.append(
            f"| {name} | {student['student']} | {rates[0]:.1f} | {rates[1]:.1f} | "
            f"{rates[1] / rates[0]:.2f} |"
        )
    return lines


def _demo_nets() -> list[tuple[dict[str, Any], int]]:
    """Options of timm ViTs with the blocks and tokens of the bundled teachers, and their size."""
    shapes = ((48, 8, 192, 3, 4), (54, 9, 160, 4, 3), (60, 5, 188, 4, 4))
    return [
        (
            {
                "img_size": size,
                "patch_size": patch,
                "embed_dim": width,
                "num_heads": heads,
                "depth": depth,
                "num_classes": 0,
            },
            size,
        )
        for size, patch, width, heads, depth in shapes
    ]


def _forward_seconds(nets: Sequence[Any], cache: Cache, num: int, precision: str) -> float:
    """One batch through every teacher: resize, normalise, forward. Median of three."""
    pixels = torch.from_numpy(cache.reader("pixels", "pixels").read(np.arange(num)))
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        images = pixels.permute(0, 3, 1, 2).float() / 255
        for net, size in nets:
            own = images
            if own.shape[-1] != size:
                own = torch.nn.functional.interpolate(own, (size, size), mode="bicubic")
            with torch.no_grad(), torch.autocast("cpu", enabled=precision == "bf16"):
                net.eval().forward_features((own - 0.5) / 0.5)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


# ---- sweep -------------------------------------------------------------------------------------


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


def sweep(options: argparse.Namespace) -> list[str]:
    """8 settings (4 normalizers x 2 rates), small student, three ViT-S-sized teachers."""
    student = DEMO_STUDENT | {"batch_size": 32, "num_steps": options.steps}
    grid = cells(
        settings(**student, checkpoint_every=0, memory_bytes=0).to_dict()
        | {"normalizer": "phi-s", "lr": 1e-3},
        {},
    )
    base = {k: v for k, v in grid[0].config.to_dict().items() if k not in ("normalizer", "lr")}
    grid = cells(base, {"normalizer": ["phi-s", "none", "pca", "standardize"], "lr": [1e-3, 2e-3]})
    with synthetic_cache(vit_sized("SSS"), options.rows, 60) as cache:
        train = _Sweeper(cache)
        train.run(grid[:1], resident=True)  # warm-up: compilation of kernels, first allocations
        ratios = []
        for _ in range(3):  # pass by pass, so that a machine that slows down slows both
            held = [train.run([cell], resident=True) for cell in grid]
            together = train.run(grid)
            ratios.append(together["seconds"] / sum(run["seconds"] for run in held))
        alone = [train.run([cell]) for cell in grid]
        need = alone[0]["bytes"] / statistics.median(run["seconds"] for run in held)
        rate = need / 5
        slow_alone = train.run(grid[:1], bytes_per_s=rate)["seconds"] * len(grid)
        slow_together = train.run(grid, bytes_per_s=rate)["seconds"]
    total_held, total_bytes = (
        sum(run["seconds"] for run in held),
        sum(run["bytes"] for run in alone),
    )
    return [
        f"Rows of {train.row_bytes / 1e6:.2f} MB, {options.steps} steps of 32.",
        "",
        "| | seconds | GB read | peak anonymous MB |",
        "|---|---|---|---|",
        f"| 8 runs, targets in memory | {total_held:.1f} | - | {held[0]['peak']:.0f} |",
        f"| 8 runs from the cache | {sum(r['seconds'] for r in alone):.1f} | "
        f"{total_bytes / 1e9:.2f} | {alone[0]['peak']:.0f} |",
        f"| one sweep | {together['seconds']:.1f} | {together['bytes'] / 1e9:.2f} | "
        f"{together['peak']:.0f} |",
        "",
        f"- sweep over 8 runs in memory: {statistics.median(ratios):.3f}, the median of "
        + ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios)),
        f"- bytes read over 8 runs' bytes: {together['bytes'] / total_bytes:.3f}",
        f"- one run needs {need / 1e6:.0f} MB/s; throttled to {rate / 1e6:.0f} MB/s 8 runs take "
        f"{slow_alone:.1f} s (one measured, times 8), the sweep {slow_together:.1f} s: "
        f"{slow_alone / slow_together:.1f} times faster",
    ]


class _Sweeper:
    def __init__(self, cache: Cache) -> None:
        self.cache, self.row_bytes = cache, 0

    def run(
        self, grid: Sequence[Any], *, resident: bool = False, bytes_per_s: float = float("inf")
    ) -> dict[str, float]:
        """Train cells together in a fresh folder; only the steps are timed."""
        with tempfile.TemporaryDirectory(prefix="phistill-bench-") as folder:
            lessons = [prepare(self.cache, cell.config, ALONE.device) for cell in grid]
            runs = [
                Run(Path(folder) / str(number), lesson, ALONE, None)
                for number, lesson in enumerate(lessons)
            ]
            source = ThrottledSource(self.cache, lessons[0].targets)
            source.bytes_per_s, self.row_bytes = bytes_per_s, source.row_bytes
            if resident:
                source.keep_in_memory(lessons[0].plan.rows)
            peak = _Peak()
            before, begun = _bytes_read(), time.perf_counter()
            with peak:
                run_steps(runs, source, ALONE, lessons[0].targets)
            seconds = time.perf_counter() - begun
            for one in runs:
                one.close()
            return {
                "seconds": seconds,
                "bytes": float(_bytes_read() - before),
                "peak": peak.megabytes,
            }


# ---- leaks -------------------------------------------------------------------------------------


def leaks(options: argparse.Namespace) -> list[str]:
    """A run of 40 steps and one of 2,000, streamed with two workers: G24 allows 5 %."""
    student = {
        "student": "vit_tiny_patch16_224",
        "student_options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
        "head_width": 32,
        "batch_size": 16,
        "loader_workers": 2,
        "memory_bytes": 0,
    }
    rows = []
    with synthetic_cache(list(DEMO), 128, 48) as cache:
        lesson = prepare(cache, settings(**student), ALONE.device)
        trainee, source = trainee_of(lesson), Source(cache, lesson.targets)
        for steps in (40, 2000):
            _steps(trainee, lesson, source, steps)
            rows.append((steps, _anonymous_mb(), len(os.listdir("/proc/self/fd"))))
    lines = ["| steps | anonymous MB | descriptors |", "|---|---|---|"]
    lines += [f"| {steps} | {mb:.1f} | {descriptors} |" for steps, mb, descriptors in rows]
    return [*lines, "", f"- growth of anonymous memory: {rows[1][1] / rows[0][1] - 1:+.1%}"]


# ---- the machine -------------------------------------------------------------------------------


def _anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def _bytes_read() -> int:
    """Bytes this process asked of the kernel with read calls (rchar)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


class _Peak:
    """The largest anonymous memory seen while entered, sampled every 50 ms."""

    def __enter__(self) -> _Peak:
        self.megabytes, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.megabytes = max(self.megabytes, _anonymous_mb())


def header(name: str) -> list[str]:
    """What was run, when, and on what; a loaded machine shows in the load average."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        f"## train.py {name}",
        "",
        f"{when}, commit {commit}, {cpu[0].split(': ')[1] if cpu else platform.machine()}, "
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, "
        f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}.",
        "",
    ]


SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "loader": loader,
    "memory": memory,
    "live": live,
    "sweep": sweep,
    "leaks": leaks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=[*SECTIONS, "all"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", default="SBL", help="ViT teachers of `live`")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for name in SECTIONS if options.section == "all" else [options.section]:
        lines = [*header(name), *SECTIONS[name](options), ""]
        text = "\n".join(lines)
        sys.stdout.write(text + "\n")
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as out:
                out.write(text + "\n")


if __name__ == "__main__":
    main()
