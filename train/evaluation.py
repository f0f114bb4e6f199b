"""How much of each teacher a student explains, on rows it was not trained on.

For patches y and predictions p, both raw, over rows, tokens and channels:
    mse = mean (p - y)^2        unexplained = mse / mean (y - m)^2,  m = the *training* mean
so that predicting the training mean scores 1. Summaries are learnt by direction, so they have a
cosine only, unless the summary loss is MSE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from phistill import cache as store
from phistill.cache import Split
from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.compute.precision import full_float32, widest_float
from phistill.errors import IncompleteCache, RunMismatch, UsageError

from .data.source import PIXELS, Source, parts_of
from .data.stream import Rows
from .student.predict import TrainedStudent, load_run
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
    """Standard error of ``unexplained`` over rows (delta method); None for a single row."""

    cosine: float
    """Mean over vectors of cos(p, y)."""

    cosine_error: float | None
    """Its standard error over rows; None for a single row."""

    cache: str = ""
    """Which cache the rows are of; empty where there is only one."""

    @property
    def column(self) -> str:
        """``TEACHER/KIND``, followed by ``@CACHE`` where there are several caches."""
        return f"{self.teacher}/{self.kind}" + (f"@{self.cache}" if self.cache else "")

    @property
    def score(self) -> float:
        """What students are compared by: unexplained, or 1 - cosine where only a direction is
        learnt. Lower is better; 1 is no better than a constant."""
        return 1 - self.cosine if self.unexplained is None else self.unexplained

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Sums:
    """Per row: squared error, squared deviation and cosine, each a mean over the row."""

    def __init__(self, target: Target, mean: Tensor, *, directions: bool) -> None:
        self.target, self.mean, self.directions = target, mean, directions
        self.columns: list[Tensor] = []

    def add(self, prediction: Tensor, value: Tensor) -> None:
        y, wide = value.float(), widest_float(value.device)
        axes = tuple(range(1, y.ndim))
        error = (prediction - y).square().mean(axes, dtype=wide)
        deviation = (y - self.mean).square().mean(axes, dtype=wide)
        cosine = F.cosine_similarity(prediction, y, dim=-1).reshape(len(y), -1).mean(1, dtype=wide)
        self.columns.append(torch.stack([error, deviation, cosine], 1).cpu().double())

    def row(self, student: str) -> EvalRow:
        error, deviation, cosine = torch.cat(self.columns).numpy().T
        n = len(error)
        mse, baseline = float(error.mean()), float(deviation.mean())
        ratio = mse / baseline if baseline > 0 else math.nan
        spread = _standard_error(error - ratio * deviation)
        if spread is not None:
            spread /= baseline or math.nan
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
            cosine_error=_standard_error(cosine),
        )


def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean; a single value says nothing about its own spread."""
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None


def measure(
    student: TrainedStudent,
    source: Source,
    rows: Rows,
    means: Mapping[str, NDArray[np.float64]],
    *,
    label: str,
    cache: str = "",
    progress: EvalProgress | None = None,
) -> list[EvalRow]:
    """Every target of a student on ``rows``; ``means`` are the training means by target key.

    ``label`` names the student and ``cache`` where the rows come from.
    """
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
        pixels = torch.from_numpy(source.readers[PIXELS].read(block))
        with full_float32():
            predictions = student.predict(pixels)
        for target in student.targets:
            value = torch.from_numpy(source.readers[target.key].read(block)).to(device)
            sums[target.key].add(predictions[target.teacher][target.kind], value)
        if progress is not None:
            progress(min(start + BATCH_ROWS, len(rows)), len(rows))
    return [replace(sums[target.key].row(label), cache=cache) for target in student.targets]


def evaluate(
    run: Path | str,
    cache: CacheArgument | None = None,
    *,
    untrained: bool = True,
    which: str = "latest",
    split: Split = "heldout",
    max_rows: int = 0,
    device: str = "auto",
    progress: EvalProgress | None = None,
) -> list[EvalRow]:
    """Every teacher of a run on the cache's held-out rows, for the student and an untrained one.

    ``cache`` defaults to the one the run was trained on. A run on several caches, or a sequence of
    them, gives the lines of each, ``max_rows`` rows of each. Raises IncompleteCache when no row is
    held out, RunMismatch when the cache's teachers are not those of the run.
    """
    student = load_run(run, which=which, device=device)
    caches = open_caches(_own_caches(student.facts) if cache is None else cache)
    refuse_other_teachers(caches, student.facts["teachers"], run)
    teachers = list(student.facts["teachers"])
    parts = parts_of(caches, teachers, split, max_rows)
    if not parts:
        raise IncompleteCache(
            f"{caches.location} has no {split} row for {', '.join(teachers)}. Extract a cache "
            "with a larger --holdout, or evaluate with --split train."
        )
    source = Source(caches, student.targets)
    means = {key: np.asarray(value) for key, value in student.facts["means"].items()}
    students = [("trained", student)]
    if untrained:
        students.append(("untrained", load_run(run, which=which, untrained=True, device=device)))
    return [
        line
        for part in parts
        for label, one in students
        for line in measure(
            one, source, part.rows, means, label=label, cache=part.cache, progress=progress
        )
    ]


def _own_caches(facts: Mapping[str, Any]) -> list[str]:
    """Paths of the caches a run was trained on; UsageError when one is not there any more."""
    paths = [str(entry["path"]) for entry in facts["caches"]]
    for path in paths:
        if not store.exists(path):
            raise UsageError(
                f"the cache of this run, {path}, is not there any more. "
                "Say where it is now with --cache" + (", once for each." if paths[1:] else ".")
            )
    return paths


def mean_score(lines: Sequence[EvalRow]) -> float:
    """One number for a student, lower is better: the mean over teachers and token kinds.

    Over several caches, the mean of what each of them gives.
    """
    return sum(line.score for line in lines) / len(lines)


def refuse_other_teachers(
    caches: JoinedCaches, teachers: Mapping[str, Mapping[str, Any]], run: object
) -> None:
    """RunMismatch naming each field in which the caches' teachers differ from the run's."""
    for cache in caches.caches:
        for name, stored in teachers.items():
            if name not in cache.teachers:
                raise RunMismatch(
                    f"{cache.location} has no teacher {name!r}, which {run} was trained on."
                )
            differing = cache.teacher(name).differences(stored)
            if differing:
                lines = "".join(
                    f"\n  {key}: {before!r} -> {now!r}" for key, (now, before) in differing.items()
                )
                raise RunMismatch(
                    f"teacher {name!r} of {cache.location} is not the one {run} was trained on:"
                    f"{lines}\nTake the cache the run was trained on, or train a new run."
                )
