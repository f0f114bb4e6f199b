"""Everything that ``phistill evaluate`` says: fidelity, likeness, and what labels say.

Every figure stands beside its nulls: the constant, an untrained student and plain pixels below, the
teacher itself above. One vector stands for an image: a teacher's summary or, where it has none, the
mean of its patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.display import Table
from phistill.stats.intervals import Interval, interval, values_and_ones

from ..checkpoint import caches_of_run
from ..data.source import Source, parts_of
from ..data.stream import Rows
from ..student.predict import load_run
from .evaluate import evaluate, refuse_other_teachers
from .features import FeatureReader
from .fidelity import EvalProgress, EvalRow
from .index import images_of, labels_of
from .probes import knn_hits, linear_hits
from .similarity import cka, cka_interval, neighbour_overlap, rank_me_interval
from .tasks import BACKBONE, CONSTANT, PLAIN, UNTRAINED, TaskScore, in_order, rate

if TYPE_CHECKING:
    import pandas as pd

MAX_COMPARED = 2000
"""Images whose likeness is taken: it needs every pair of them."""

MAX_TRAINING = 20_000
"""Labelled training rows that a probe learns from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """A student in the place of one teacher, on the rows of one cache."""

    student: str
    teacher: str
    cka: Interval
    overlap: Interval
    """Share of nearest neighbours in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Of one run on one split of its caches."""

    lines: tuple[EvalRow, ...]
    likeness: tuple[Likeness, ...]
    ranks: Mapping[str, Interval]
    """RankMe by features: each teacher, the student in its place, the backbones."""

    matrix: Mapping[str, Mapping[str, float]]
    """CKA between teachers and backbones, both ways."""

    tasks: tuple[TaskScore, ...]
    """kNN and linear probe, and what ``with_tasks`` added; empty without labels."""

    def with_tasks(self, more: Iterable[TaskScore]) -> Verdict:
        """With further scores: those of ``text_scores`` and ``mask_scores``."""
        return replace(self, tasks=(*self.tasks, *more))

    def _repr_html_(self) -> str:
        return Table(self.lines)._repr_html_()

    def to_pandas(self) -> pd.DataFrame:
        """``lines`` with every quantity; UsageError without pandas."""
        return Table(self.lines).to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """Named quantities, JSON-able."""
        return {
            "fidelity": [line.to_dict() for line in self.lines],
            "likeness": [
                {
                    "student": one.student,
                    "teacher": one.teacher,
                    "cka": one.cka.to_dict(),
                    "neighbour_overlap": one.overlap.to_dict(),
                }
                for one in self.likeness
            ],
            "rank_me": {name: found.to_dict() for name, found in self.ranks.items()},
            "cka_matrix": {name: dict(row) for name, row in self.matrix.items()},
            "tasks": [one.to_dict() for one in self.tasks],
        }


def verdict(
    run: Path | str,
    cache: CacheArgument | None = None,
    *,
    which: str = "latest",
    split: Split = "heldout",
    max_rows: int = 0,
    device: str = "auto",
    taught: CacheArgument | None = None,
    progress: EvalProgress | None = None,
) -> Verdict:
    """Judge a run; arguments and errors are those of ``evaluate``.

    ``taught`` are caches whose labelled training rows teach kNN and probe; by default ``cache``.
    Rows that are asked teach nothing.
    """
    student = load_run(run, which=which, device=device)
    untrained = load_run(run, which=which, untrained=True, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    lines = evaluate(
        run, caches, which=which, split=split, max_rows=max_rows, device=device, progress=progress
    )
    teachers = list(student.facts["teachers"])
    source = Source(caches, student.targets)
    rows = np.concatenate([part.rows for part in parts_of(caches, teachers, split, max_rows)])
    reader = FeatureReader(source, student, untrained)
    compared = reader.vectors(_one_view(caches, rows)[:MAX_COMPARED])
    lesson = _Lesson(caches, reader, np.setdiff1d(caches.rows(teachers, "train"), rows))
    if taught is not None:
        others = open_caches(taught)
        refuse_other_teachers(others, student.facts["teachers"], run)
        shown = FeatureReader(Source(others, student.targets), student, untrained)
        lesson = _Lesson(others, shown, others.rows(teachers, "train"))
    names = [f"teacher {name}" for name in reader.teachers] + [BACKBONE, UNTRAINED]
    return Verdict(
        lines=tuple(lines),
        likeness=tuple(_likeness(compared, reader.teachers)),
        ranks={
            name: rank_me_interval(values)
            for name, values in compared.items()
            if name != PLAIN and not name.startswith("untrained as ")
        },
        matrix={a: {b: cka(compared[a], compared[b]) for b in names} for a in names},
        tasks=tuple(_label_scores(caches, reader, rows, lesson)),
    )


def _one_view(caches: JoinedCaches, rows: Rows) -> Rows:
    """The first of each image's rows."""
    _, first = np.unique(images_of(caches, rows).astype(str), return_index=True)
    return rows[np.sort(first)]


def _likeness(compared: Mapping[str, Tensor], teachers: Sequence[str]) -> list[Likeness]:
    found = []
    for name in teachers:
        teacher = compared[f"teacher {name}"]
        for who, features in (
            *((label, compared[f"{label} as {name}"]) for label in ("student", "untrained")),
            (PLAIN, compared[PLAIN]),
        ):
            shared = neighbour_overlap(features, teacher).cpu().numpy()
            found.append(
                Likeness(
                    student=who,
                    teacher=name,
                    cka=cka_interval(features, teacher),
                    overlap=interval(values_and_ones(shared)),
                )
            )
    return found


class _Lesson(NamedTuple):
    """Rows that may teach, and what reads their features."""

    caches: JoinedCaches
    reader: FeatureReader
    rows: Rows


def _label_scores(
    caches: JoinedCaches, reader: FeatureReader, rows: Rows, lesson: _Lesson
) -> list[TaskScore]:
    """kNN and probe, asked of ``rows``; [] where labels do not do.

    Images of labels that nothing teaches are left out.
    """
    taught = lesson.rows[np.random.default_rng(0).permutation(len(lesson.rows))[:MAX_TRAINING]]
    known, asked = labels_of(lesson.caches, taught), labels_of(caches, rows)
    taught, known = taught[known != None], known[known != None]  # noqa: E711
    classes = np.unique(known.astype(str))
    usable = np.isin(asked.astype(str), classes) & (asked != None)  # noqa: E711
    rows, asked = rows[usable], asked[usable]
    if len(classes) < 2 or not len(rows):
        return []
    labels, wanted = (
        torch.from_numpy(np.searchsorted(classes, values.astype(str))) for values in (known, asked)
    )
    x, test = lesson.reader.vectors(taught), reader.vectors(rows)
    device = next(iter(x.values())).device
    labels, wanted = labels.to(device), wanted.to(device)
    images = images_of(caches, rows)
    commonest = wanted == labels.bincount().argmax()
    scores = []
    for task, ask in (("kNN", knn_hits), ("linear probe", linear_hits)):
        found = {name: ask(x[name], labels, test[name], wanted) for name in x}
        found[CONSTANT] = commonest
        scores += [
            TaskScore(
                task=task,
                features=name,
                score=rate(found[name], images),
                num_classes=len(classes),
            )
            for name in in_order(list(found))
        ]
    return scores
