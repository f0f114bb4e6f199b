"""How much of each teacher a student explains, on rows it was not trained on.

For patches y and predictions p, both raw, over rows, tokens and channels:
    mse = mean (p - y)^2        unexplained = mse / mean (y - m)^2,  m = the *training* mean
so that predicting the training mean scores 1. Summaries are learnt by direction, so they have a
cosine only, unless the summary loss is MSE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .. import cache as store
from ..cache import Cache, Split
from ..cache.errors import IncompleteCache, RunMismatch, UsageError
from .data import PIXELS, Source
from .plan import Rows
from .predict import TrainedStudent, load_run
from .targets import SUMMARY, Target

BATCH_ROWS = 128

EvalProgress = Callable[[int, int], None]
"""Called with the rows done and the rows there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One teacher and token kind, one student."""

    student: str
    """``trained`` or ``untrained``."""

    teacher: str
    kind: str
    num_rows: int
    mse: float | None
    """In the teacher's raw units; None where only the direction is learnt."""

    baseline: float | None
    """Mean squared deviation of these rows from the training mean."""

    unexplained: float | None
    """mse / baseline."""

    unexplained_error: float | None
    """Standard error of ``unexplained`` over rows (delta method)."""

    cosine: float
    """Mean over vectors of cos(p, y)."""

    cosine_error: float
    """Its standard error over rows."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Sums:
    """Per row: squared error, squared deviation and cosine, each a mean over the row."""

    def __init__(self, target: Target, mean: Tensor, *, directions: bool) -> None:
        self.target, self.mean, self.directions = target, mean, directions
        self.columns: list[Tensor] = []

    def add(self, prediction: Tensor, value: Tensor) -> None:
        y = value.float()
        axes = tuple(range(1, y.ndim))
        error = (prediction - y).square().double().mean(axes)
        deviation = (y - self.mean).square().double().mean(axes)
        cosine = F.cosine_similarity(prediction, y, dim=-1).double().reshape(len(y), -1).mean(1)
        self.columns.append(torch.stack([error, deviation, cosine], 1).cpu())

    def row(self, student: str) -> EvalRow:
        error, deviation, cosine = torch.cat(self.columns).numpy().T
        n = len(error)
        mse, baseline = float(error.mean()), float(deviation.mean())
        ratio = mse / baseline if baseline > 0 else math.nan
        spread = float(np.std(error - ratio * deviation)) / math.sqrt(n) / (baseline or math.nan)
        known = not self.directions
        return EvalRow(
            student=student,
            teacher=self.target.teacher,
            kind=self.target.kind,
            num_rows=n,
            mse=mse if known else None,
            baseline=baseline if known else None,
            unexplained=ratio if known else None,
            unexplained_error=spread if known else None,
            cosine=float(cosine.mean()),
            cosine_error=float(np.std(cosine)) / math.sqrt(n),
        )


def measure(
    student: TrainedStudent,
    source: Source,
    rows: Rows,
    means: Mapping[str, NDArray[np.float64]],
    *,
    label: str,
    progress: EvalProgress | None = None,
) -> list[EvalRow]:
    """Every target of a student on ``rows``; ``means`` are the training means by target key."""
    directions = student.config.summary_loss != "mse"
    device = student.device
    sums = {
        target.key: _Sums(
            target,
            torch.tensor(means[target.key], dtype=torch.float32, device=device),
            directions=target.kind == SUMMARY and directions,
        )
        for target in student.targets
    }
    student.eval()
    for start in range(0, len(rows), BATCH_ROWS):
        block = rows[start : start + BATCH_ROWS]
        predictions = student.predict(torch.from_numpy(source.readers[PIXELS].read(block)))
        for target in student.targets:
            value = torch.from_numpy(source.readers[target.key].read(block)).to(device)
            sums[target.key].add(predictions[target.teacher][target.kind], value)
        if progress is not None:
            progress(min(start + BATCH_ROWS, len(rows)), len(rows))
    return [sums[target.key].row(label) for target in student.targets]


def evaluate(
    run: Path | str,
    cache: Cache | Path | str | None = None,
    *,
    untrained: bool = True,
    which: str = "latest",
    split: Split = "heldout",
    max_rows: int = 0,
    device: str = "auto",
    progress: EvalProgress | None = None,
) -> list[EvalRow]:
    """Every teacher of a run on the cache's held-out rows, for the student and an untrained one.

    ``cache`` defaults to the one the run was trained on. Raises IncompleteCache when no row is held
    out, RunMismatch when the cache's teachers are not those of the run.
    """
    student = load_run(run, which=which, device=device)
    if cache is None and not store.exists(student.facts["cache"]):
        raise UsageError(
            f"the cache of this run, {student.facts['cache']}, is not there any more. "
            "Say where it is now with --cache."
        )
    opened = open_cache(student.facts["cache"] if cache is None else cache)
    refuse_other_teachers(opened, student.facts["teachers"], run)
    teachers = list(student.facts["teachers"])
    rows = opened.rows(teachers, split)
    rows = rows[:max_rows] if max_rows else rows
    if not rows.size:
        raise IncompleteCache(
            f"{opened.location} has no {split} row for {', '.join(teachers)}. Extract a cache "
            "with a larger --holdout, or evaluate with --split train."
        )
    source = Source(opened, student.targets)
    means = {key: np.asarray(value) for key, value in student.facts["means"].items()}
    students = [("trained", student)]
    if untrained:
        students.append(("untrained", load_run(run, which=which, untrained=True, device=device)))
    return [
        line
        for label, one in students
        for line in measure(one, source, rows, means, label=label, progress=progress)
    ]


def mean_unexplained(lines: Sequence[EvalRow]) -> float:
    """One number for a student: the mean over teachers, 1 - cosine where there is no variance."""
    values = [
        line.unexplained if line.unexplained is not None else 1 - line.cosine for line in lines
    ]
    return sum(values) / len(values)


def open_cache(cache: Cache | Path | str) -> Cache:
    """The cache itself, or the one at a path."""
    return cache if isinstance(cache, Cache) else store.open(cache)


def refuse_other_teachers(
    cache: Cache, teachers: Mapping[str, Mapping[str, Any]], run: object
) -> None:
    """RunMismatch naming each field in which the cache's teachers differ from the run's."""
    for name, stored in teachers.items():
        if name not in cache.teachers:
            raise RunMismatch(
                f"{cache.location} has no teacher {name!r}, which {run} was trained on."
            )
        found = cache.teacher(name).fingerprint
        differing = [
            key for key in sorted(set(found) | set(stored)) if found.get(key) != stored.get(key)
        ]
        if differing:
            lines = "".join(f"\n  {k}: {stored.get(k)!r} -> {found.get(k)!r}" for k in differing)
            raise RunMismatch(
                f"teacher {name!r} of {cache.location} is not the one {run} was trained on:"
                f"{lines}\nTake the cache the run was trained on, or train a new run."
            )


def as_table(lines: Sequence[EvalRow]) -> str:
    """A plain table for a terminal."""
    if not lines:
        raise UsageError("there is nothing to show.")
    names = ("student", "teacher", "kind", "rows", "mse", "unexplained")
    head = "{:10} {:16} {:8} {:>6} {:>11} {:>17} cosine".format(*names)
    return "\n".join([head, *(_line(line) for line in lines)])


def _line(line: EvalRow) -> str:
    mse = "-" if line.mse is None else f"{line.mse:.4g}"
    share = "-"
    if line.unexplained is not None and line.unexplained_error is not None:
        share = f"{line.unexplained:.3f} ± {1.96 * line.unexplained_error:.3f}"
    return (
        f"{line.student:10} {line.teacher:16} {line.kind:8} {line.num_rows:6d} {mse:>11} "
        f"{share:>17} {line.cosine:.3f}"
    )
