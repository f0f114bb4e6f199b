"""Students from float16 and from codes, same seeds: what the codes cost in the end.

    python benchmarks/codes/run.py data --cache FLOAT   extracts and fits
    python benchmarks/codes/students.py sources --cache FLOAT --work DIR [--sources 2,1,mvq-8]
    python benchmarks/codes/students.py train --cache FLOAT --work DIR [--until HH:MM]
        [--device cuda] [--part 0/8 ...]   one of several processes that share the cells
    python benchmarks/codes/students.py table --work DIR [--out FILE]

A cell is a student size, a source of features and a seed; `train` makes the cells that are missing,
seed by seed, and may be stopped at any time: a finished cell is a file of DIR/cells. All cells of a
seed begin with the same weights and see the same images in the same order. Every student is scored
against the *float* features of held-out images, and by two of the teachers' own tasks: text to
image retrieval through clip's text tower, IoU of mask's mattes. `table` tells what there is.

Sources: float16; codes of so many bits (`phistill compact --bits`); mvq-N and ours-N, the
reconstruction of multi-quantization's N bytes a token and of ours at the same bytes, as training
decodes them, each stored as float16 features.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rivals import Rival, mvq_codes
from scipy.stats import t as student_t

from phistill import cache as store
from phistill.cache import Cache
from phistill.demo.pictures import BUNDLED
from phistill.demo.student_scores import SHOWN, Judge
from phistill.stats import Moments, fit_stats
from phistill.stats.codes import RowSpectrum
from phistill.stats.compacting import compact_cache
from phistill.stats.intervals import interval, ratio
from phistill.train import TrainConfig, evaluate, load_run, train
from phistill.train.curve import curve_end
from phistill.train.metrics import read_metrics

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

from machine import header
from measuring import tell

BITS = ("2", "1", "0.5", "4", "0.25")
TOKEN_BYTES = 8
"""What MVQ is made for: indexes of 8 codebooks a frame."""
SOURCES = ("float16", *BITS, f"mvq-{TOKEN_BYTES}", f"ours-{TOKEN_BYTES}")
NUM_SEEDS = 8
PILOT = 1500
MVQ_STEPS = 2_000

SHAPES = {
    "small": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "large": {"depth": 4, "embed_dim": 128, "num_heads": 4},
}
NUM_STEPS = 300
GOALS = {"2": 0.005, "1": 0.01, "0.5": 0.03}
"""Largest relative change of the unexplained variance that is hoped for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One student."""

    size: str
    source: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.size}_{self.source}_{self.seed}"

    def config(self, num_steps: int, device: str) -> TrainConfig:
        return TrainConfig(
            student="vit_tiny_patch16_224",
            student_options={"patch_size": 8, "img_size": 64, **SHAPES[self.size]},
            head="linear",
            num_steps=num_steps,
            batch_size=32,
            lr=2e-3,
            seed=self.seed,
            order_seed=self.seed,
            device=device,
            precision="float32",
            log_every=max(1, num_steps // 30),
            checkpoint_minutes=0,
            tensorboard=False,
            validate_rows=32,
        )


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed, so that what is there at any time can be compared; those of one part."""
    ordered = [
        Cell(size, source, seed)
        for seed in range(NUM_SEEDS)
        for size in options.sizes
        for source in options.sources
    ]
    part, num_parts = options.part
    yield from ordered[part::num_parts]


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def part(text: str) -> tuple[int, int]:
    number, num_parts = map(int, text.split("/"))
    return number, num_parts


def train_cells(options: argparse.Namespace) -> None:
    """Every cell that is missing."""
    floats = store.open(options.cache)
    judge = Judge(floats, BUNDLED)
    done = options.work / "cells"
    done.mkdir(parents=True, exist_ok=True)
    for cell in cells(options):
        path = done / f"{cell.name}.npz"
        if path.exists():
            continue
        if options.until and datetime.datetime.now().strftime("%H:%M") >= options.until:
            break
        begin = time.process_time()
        run = options.work / "runs" / cell.name
        train(
            source_cache(floats, cell.source, options),
            run,
            cell.config(options.steps, options.device),
        )
        values, columns = scores(run, floats, judge)
        losses = [sum(line["losses"].values()) for line in read_metrics(run, "train")]
        end = curve_end(losses)
        values |= {"loss": losses[-1], "fall": end.fall if end else math.nan}
        values |= {"cpu_s": time.process_time() - begin}
        facts = {"size": cell.size, "source": cell.source, "seed": cell.seed, "values": values}
        facts |= {"steps": options.steps}
        part = path.with_suffix(".part.npz")
        np.savez(part, facts=json.dumps(facts), **columns)
        part.rename(path)
        shutil.rmtree(run)
        told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{cell.name}: {told}", flush=True)


def scores(
    run: Path, floats: Cache, judge: Judge
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Figures by name, and of each teacher squared error and deviation by image."""
    lines = [
        line
        for line in evaluate(run, floats, untrained=False, device="cpu")
        if line.kind == "patches"
    ]
    values = {line.teacher: line.error for line in lines}
    columns = {line.teacher: line.columns for line in lines if line.columns is not None}
    tasks = judge.scores(*judge.student(load_run(run, device="cpu")))
    return values | {name: tasks[name].value for name in SHOWN}, columns


def make_sources(options: argparse.Namespace) -> None:
    """The caches that are missing, before several processes train from them."""
    floats = store.open(options.cache)
    options.work.mkdir(parents=True, exist_ok=True)
    for source in options.sources:
        source_cache(floats, source, options)


def source_cache(floats: Cache, source: str, options: argparse.Namespace) -> Cache:
    """The cache that students of this source learn from, made when it is first asked for."""
    if source == "float16":
        return floats
    path = options.work / f"{source}.cache"
    if not path.exists():
        part = options.work / f"{source}.part"
        shutil.rmtree(part, ignore_errors=True)
        if source in BITS:
            compact_cache(floats, part, bits=float(source))
        else:
            codes, num_bytes = source.split("-")
            reconstructed(floats, part, codes, int(num_bytes), options)
            fit_stats(part)
        part.rename(path)
    return store.open(path)


def reconstructed(
    floats: Cache, path: Path, codes: str, num_bytes: int, options: argparse.Namespace
) -> None:
    """A cache with the patches as they come back from codes of ``num_bytes`` a token."""
    shutil.copytree(floats.path, path, ignore=shutil.ignore_patterns("stats", "normalizers"))
    cache = store.open(path)
    for teacher in cache.teachers:
        read = {kind: floats.reader(teacher, kind).read for kind in cache.teacher(teacher).kinds}
        pilot = read["patches"](floats.rows([teacher], "train")[:PILOT])
        if codes == "mvq":
            trained = mvq_codes(
                pilot, num_bytes, options.mvq_steps, options.threads, options.device
            )
            course = ", ".join(f"{share:.4f}" for share in trained.shares)
            print(f"{teacher}: MVQ loses {course}, {trained.cpu_s:.0f} s", flush=True)
            coder = of_tokens(trained.rival)
        else:
            coder = ours(pilot, cache.teacher(teacher).grid, num_bytes)
        for shard, record in floats.commits(teacher).items():
            rows = np.arange(record.start, record.start + record.num_rows)
            arrays = {kind: one(rows) for kind, one in read.items()}
            arrays["patches"] = coder(arrays["patches"]).astype(np.float16)
            images = cache.facts_of(shard)
            assert images is not None
            cache.forget_shard(teacher, shard)
            cache.commit_shard(
                teacher,
                shard,
                arrays,
                images=images,
                reasons=record.reasons,
                environment=record.environment,
            )


def ours(pilot: np.ndarray, grid: tuple[int, int], num_bytes: int) -> Rival:
    spectrum = RowSpectrum.of(Moments.of(pilot), [pilot], grid=grid)
    codec = spectrum.codec(num_bytes * pilot.shape[1])
    return lambda rows: codec.decode(codec.encode(rows), unbiased=True)  # as training decodes


def of_tokens(coder: Rival) -> Rival:
    """Of rows (n, t, c) what ``coder`` makes of tokens (m, c)."""
    return lambda rows: coder(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell's figures."""

    values: dict[str, float]
    columns: dict[str, np.ndarray]
    steps: int


def finished(work: Path) -> dict[Cell, Finished]:
    found = {}
    for path in sorted((work / "cells").glob("*.npz")):
        if path.name.endswith(".part.npz"):
            continue
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            columns = {name: file[name] for name in file.files if name != "facts"}
        cell = Cell(facts["size"], facts["source"], facts["seed"])
        found[cell] = Finished(facts["values"], columns, facts["steps"])
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """A difference from float16 with its 95 % interval."""

    value: float
    half: float

    @property
    def largest(self) -> float:
        """The largest size that the interval does not exclude."""
        return abs(self.value) + self.half

    def __str__(self) -> str:
        return f"{self.value:+.2f} ± {self.half:.2f}"


def table(work: Path) -> list[str]:
    """Everything that is finished, as Markdown."""
    found = finished(work)
    lines = header("Students from codes", "one thread a student", f"{len(found)} students")
    for size, shape in SHAPES.items():
        ended = [(cell, one) for cell, one in found.items() if cell.size == size]
        teachers = sorted({name for _, one in ended for name in one.columns})
        seeds = {cell.seed for cell, _ in ended if cell.source == "float16"}
        if not seeds:
            continue
        floats = {seed: found[Cell(size, "float16", seed)] for seed in seeds}
        steps = max(one.steps for one in floats.values())
        lines += [
            f"**{size}**: ViT of depth {shape['depth']} and width {shape['embed_dim']}, "
            f"{steps} steps of 32. From float16 ({len(seeds)} seeds) it leaves unexplained "
            + ", ".join(f"{name} {mean(floats, name):.4f}" for name in teachers)
            + "; "
            + ", ".join(f"{name} {mean(floats, name):.3f}" for name in SHOWN)
            + f". Over the last half of the steps its loss falls by {mean(floats, 'fall'):.1%}.",
            "",
            "Change of the unexplained variance of the float features, in % of float16's, and in "
            "brackets the largest that the interval does not exclude; tasks: change in points.",
            "",
            f"| from | seeds | {' | '.join((*teachers, *SHOWN))} |",
            "|---|---|" + "---|" * (len(teachers) + len(SHOWN)),
        ]
        for source in SOURCES[1:]:
            other = {cell.seed: one for cell, one in ended if cell.source == source}
            both = sorted(set(other) & seeds)
            if len(both) < 2:
                continue
            pairs = [(floats[seed], other[seed]) for seed in both]
            cells_ = [told(unexplained_change(pairs, name)) for name in teachers]
            cells_ += [told(task_change(pairs, name)) for name in SHOWN]
            lines.append(f"| {source} | {len(both)} | {' | '.join(cells_)} |")
        lines.append("")
    lines += [
        "Differences are paired by seed: same weights at the start, same images in the same order. "
        "Intervals of 95 %: of the unexplained variance over seeds (Student's t) and over held-out "
        "images (bootstrap, all seeds together), their half widths added in squares; of tasks over "
        "seeds.",
        "",
    ]
    return lines


def mean(found: Mapping[int, Finished], name: str) -> float:
    return float(np.mean([one.values[name] for one in found.values()]))


def told(change: Change) -> str:
    return f"{change} ({change.largest:.2f})"


def unexplained_change(pairs: Sequence[tuple[Finished, Finished]], teacher: str) -> Change:
    """Relative, in %, over seeds and images."""
    changes = np.array([100 * (b.values[teacher] / a.values[teacher] - 1) for a, b in pairs])
    sums = [np.sum([pair[i].columns[teacher] for pair in pairs], axis=0) for i in (0, 1)]

    def relative(four: np.ndarray) -> np.ndarray:
        return 100 * (ratio(four[:, 2:]) / ratio(four[:, :2]) - 1)

    images = interval(np.concatenate(sums, axis=1), relative)
    assert images.low is not None
    assert images.high is not None
    half = math.hypot(over_seeds(changes), (images.high - images.low) / 2)
    return Change(float(changes.mean()), half)


def task_change(pairs: Sequence[tuple[Finished, Finished]], task: str) -> Change:
    """In points, over seeds."""
    changes = np.array([100 * (b.values[task] - a.values[task]) for a, b in pairs])
    return Change(float(changes.mean()), over_seeds(changes))


def over_seeds(changes: np.ndarray) -> float:
    """Half the width of the interval of their mean."""
    n = len(changes)
    return float(student_t.ppf(0.975, n - 1) * changes.std(ddof=1) / math.sqrt(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sources", "train", "table"))
    parser.add_argument("--cache", type=Path, help="of the float features, made by run.py data")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sources", type=words, default=SOURCES)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of each student")
    parser.add_argument("--until", help="HH:MM: begin no cell after it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mvq-steps", type=int, default=MVQ_STEPS, help="of each of two phases")
    parser.add_argument("--device", default="cpu", help="that students are trained on")
    parser.add_argument("--sizes", type=words, default=tuple(SHAPES))
    parser.add_argument("--part", type=part, default=(0, 1), help="K/N: every N-th cell from K on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "table":
        tell(table(options.work), options.out)
        return
    torch.set_num_threads(options.threads)
    if options.what == "sources":
        make_sources(options)
    else:
        train_cells(options)


if __name__ == "__main__":
    main()
