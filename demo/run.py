"""The whole method on the bundled images and teachers: extract, fit-stats, train, evaluate, report.

The same student is trained twice, on PHI-S targets and on raw ones, so that the paper's point can
be seen in one table. Everything goes through the verbs that the commands call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from phistill.cache import Cache
from phistill.display import table_text
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.report import report
from phistill.report.tables import statistics_notes, statistics_table
from phistill.report.terminal import Bar, duration_text
from phistill.stats import fit_stats
from phistill.train import EvalRow, Progress, RunResult, TrainConfig, evaluate, train

from .pictures import BUNDLED
from .student_scores import ScoreTable, score_students

TEACHERS = ("demo:clip", "demo:ssl", "demo:mask")
PIXEL_SIZE = 60
CACHE = "demo.cache"
RUNS = {"phi-s": "phi-s", "raw": "none"}
"""Run folder to normalizer."""

STUDENT = TrainConfig(
    student="vit_tiny_patch16_224",
    student_options={"patch_size": 10, "embed_dim": 192, "depth": 4, "num_heads": 3},
    head_width=256,
    epochs=7.0,
    batch_size=48,
    lr=2e-3,
    weight_decay=0.05,
    validate_every=50,
    validate_rows=128,
)
"""A small ViT on 6 x 6 tokens, the grid of `clip` and `ssl`; `mask`'s 12 x 12 are interpolated."""

Say = Callable[[str], None]
ShowProgress = Callable[[str], AbstractContextManager[Bar]]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo left and measured."""

    cache: Cache
    runs: dict[str, Path]
    lines: Mapping[str, Sequence[EvalRow]]
    """Per run, trained and untrained student on held-out images."""
    scores: ScoreTable
    report: Path


def demo(
    out: Path,
    *,
    say: Say,
    progress: ShowProgress,
    config: TrainConfig = STUDENT,
    images: Path = BUNDLED,
) -> DemoResult:
    """Run every stage into the folder ``out``; a second call goes on where the first stopped.

    ``say`` is told what is done and found, line by line; ``progress`` makes a bar of a title.
    ``images`` is a table with the columns of the bundled one.
    """
    if out.exists() and not (out / CACHE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder. Choose another with --out.")
    begun = time.monotonic()
    say(f"1. extract: three teachers over {images.name}")
    with progress("extract") as bar:
        cache = extract(
            images,
            out / CACHE,
            TEACHERS,
            settings=CacheSettings(pixel_size=PIXEL_SIZE),
            on_progress=lambda at: bar(at.done_rows, at.total_rows),
        ).cache
    say(f"   {cache.info.num_real_rows:,} images in {cache.location}")
    say("2. fit-stats: moments and PHI-S")
    rows = fit_stats(cache)
    say(statistics_table(rows))
    for note in statistics_notes(rows):
        say(f"   {note}")
    runs, lines = {}, {}
    for name, method in RUNS.items():
        say(f"3. train and evaluate: {name} targets")
        runs[name] = out / "runs" / name
        result = _train(cache, runs[name], replace(config, normalizer=method), progress)
        say(f"   {result.num_steps} steps in {duration_text(result.seconds)}")
        lines[name] = evaluate(runs[name], cache)
    say("4. the teachers' own tasks")
    scores = score_students(cache, runs, images)
    page = report(
        cache,
        list(runs.values()),
        out / "report.html",
        evaluations={runs[name]: rows for name, rows in lines.items()},
        extra_tables=scores.as_report_tables(),
    )
    say("")
    say(scores.as_text())
    say("")
    say(unexplained_table(lines))
    say(f"\nDone in {duration_text(time.monotonic() - begun)}. Look at {page}")
    return DemoResult(cache, runs, lines, scores, page)


def _train(cache: Cache, run: Path, config: TrainConfig, progress: ShowProgress) -> RunResult:
    with progress(run.name) as bar:

        def show(at: Progress) -> None:
            bar(at.step, at.num_steps, f"loss {at.total:.3f}")

        return train(cache, run, config, progress=show)


def unexplained_table(lines: Mapping[str, Sequence[EvalRow]]) -> str:
    """Unexplained variance of each teacher's patches on held-out images, a column per student."""
    columns = {name: _patches(rows, "trained") for name, rows in lines.items()}
    columns["untrained"] = _patches(next(iter(lines.values())), "untrained")
    teachers = list(columns["untrained"])
    header = ["teacher", *(f"{name} student" for name in columns)]
    rows = [[t, *(f"{column[t]:.3f}" for column in columns.values())] for t in teachers]
    title = "Unexplained variance on held-out images (0: the teacher itself, 1: its mean)"
    return f"{title}\n{table_text(header, rows)}"


def _patches(lines: Sequence[EvalRow], student: str) -> dict[str, float]:
    return {
        line.teacher: line.unexplained
        for line in lines
        if line.student == student and line.kind == "patches" and line.unexplained is not None
    }
