"""Everything that ``phistill evaluate`` says: fidelity, likeness, and what labels say.

Every figure stands beside its nulls: the constant, an untrained student and plain pixels below, the
teacher itself above. One vector stands for an image: a teacher's summary or, where it has none, the
mean of its patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.compute.precision import full_float32
from phistill.stats.intervals import Interval, by_image, interval, values_and_ones

from ..data.source import PIXELS, Source, parts_of
from ..data.stream import Rows
from ..student.pixels import to_images
from ..student.predict import TrainedStudent, load_run
from ..targets import SUMMARY, Target
from .evaluate import caches_of_run, evaluate
from .fidelity import BATCH_ROWS, EvalProgress, EvalRow
from .index import images_of, labels_of
from .probes import knn_hits, linear_hits
from .similarity import cka, neighbour_overlap, rank_me

MAX_COMPARED = 2000
"""Images whose likeness is taken: it needs every pair of them."""

MAX_TRAINING = 20_000
"""Labelled training rows that a probe learns from."""

PIXEL_SIDE = 16
"""Side of the picture that stands for "plain pixels"."""

BACKBONE, UNTRAINED, PLAIN = "student, backbone", "untrained, backbone", "plain pixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """A student in the place of one teacher, on the rows of one cache."""

    student: str
    teacher: str
    cka: float
    overlap: Interval
    """Share of nearest neighbours in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelScore:
    """What one kind of features says of the labels of held-out images."""

    features: str
    """``teacher NAME``, ``student as NAME``, a backbone, plain pixels or the constant."""

    knn: Interval
    linear: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Of one run on one split of its caches."""

    lines: tuple[EvalRow, ...]
    likeness: tuple[Likeness, ...]
    ranks: Mapping[str, float]
    """RankMe by features: each teacher, the student in its place, the backbones."""

    matrix: Mapping[str, Mapping[str, float]]
    """CKA between teachers and backbones, both ways."""

    labels: tuple[LabelScore, ...]
    """Empty without labels."""

    num_classes: int

    def to_dict(self) -> dict[str, Any]:
        """Named quantities, JSON-able."""
        return {
            "fidelity": [line.to_dict() for line in self.lines],
            "likeness": [
                {
                    "student": one.student,
                    "teacher": one.teacher,
                    "cka": one.cka,
                    "neighbour_overlap": one.overlap.to_dict(),
                }
                for one in self.likeness
            ],
            "rank_me": dict(self.ranks),
            "cka_matrix": {name: dict(row) for name, row in self.matrix.items()},
            "labels": [
                {
                    "features": one.features,
                    "knn": one.knn.to_dict(),
                    "linear_probe": one.linear.to_dict(),
                }
                for one in self.labels
            ],
            "num_classes": self.num_classes,
        }


def verdict(
    run: Path | str,
    cache: CacheArgument | None = None,
    *,
    which: str = "latest",
    split: Split = "heldout",
    max_rows: int = 0,
    device: str = "auto",
    progress: EvalProgress | None = None,
) -> Verdict:
    """Judge a run; arguments and errors are those of ``evaluate``."""
    student = load_run(run, which=which, device=device)
    untrained = load_run(run, which=which, untrained=True, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    lines = evaluate(
        run, caches, which=which, split=split, max_rows=max_rows, device=device, progress=progress
    )
    teachers = list(student.facts["teachers"])
    source = Source(caches, student.targets)
    rows = np.concatenate([part.rows for part in parts_of(caches, teachers, split, max_rows)])
    reader = _Features(source, student, untrained)
    compared = reader.read(_one_view(caches, rows)[:MAX_COMPARED])
    labels, num_classes = _label_scores(caches, reader, teachers, rows)
    names = [f"teacher {name}" for name in reader.teachers] + [BACKBONE, UNTRAINED]
    return Verdict(
        lines=tuple(lines),
        likeness=tuple(_likeness(compared, reader.teachers)),
        ranks={name: rank_me(values) for name, values in compared.items() if name != PLAIN},
        matrix={a: {b: cka(compared[a], compared[b]) for b in names} for a in names},
        labels=tuple(labels),
        num_classes=num_classes,
    )


class _Features:
    """One vector per image of everything that is compared."""

    def __init__(self, source: Source, student: TrainedStudent, untrained: TrainedStudent) -> None:
        self.source, self.students = source, {"student": student, "untrained": untrained}
        self.targets: dict[str, Target] = {}
        for target in student.targets:  # the summary comes last, and wins
            if target.kind == SUMMARY or target.teacher not in self.targets:
                self.targets[target.teacher] = target
        self.teachers = list(self.targets)

    def read(self, rows: Rows) -> dict[str, Tensor]:
        """(n, c) by name, on the student's device."""
        blocks: dict[str, list[Tensor]] = {}
        for start in range(0, len(rows), BATCH_ROWS):
            for name, values in self._block(rows[start : start + BATCH_ROWS]).items():
                blocks.setdefault(name, []).append(values)
        return {name: torch.cat(parts) for name, parts in blocks.items()}

    @torch.inference_mode()
    def _block(self, rows: Rows) -> dict[str, Tensor]:
        pixels = torch.from_numpy(self.source.readers[PIXELS].read(rows))
        device = self.students["student"].device
        found = {PLAIN: to_images(pixels, PIXEL_SIDE).flatten(1).to(device)}
        for name, target in self.targets.items():
            stored = torch.from_numpy(self.source.readers[target.key].read(rows)).to(device)
            found[f"teacher {name}"] = _one_vector(stored.float(), target)
        with full_float32():
            for who, backbone in (("student", BACKBONE), ("untrained", UNTRAINED)):
                answers = self.students[who].predict(pixels)
                for name, target in self.targets.items():
                    answer = answers[name][target.kind]
                    found[f"{who} as {name}"] = _one_vector(answer, target)
                found[backbone] = self.students[who].features(pixels)[1]
        return found


def _one_vector(values: Tensor, target: Target) -> Tensor:
    return values if target.kind == SUMMARY else values.mean(1)


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
                    cka=cka(features, teacher),
                    overlap=interval(values_and_ones(shared)),
                )
            )
    return found


def _label_scores(
    caches: JoinedCaches, reader: _Features, teachers: Sequence[str], rows: Rows
) -> tuple[list[LabelScore], int]:
    """kNN and probe, taught by training rows and asked of ``rows``; [] where labels do not do.

    Images of labels that no training row has are left out.
    """
    taught = caches.rows(teachers, "train")
    taught = taught[np.random.default_rng(0).permutation(len(taught))[:MAX_TRAINING]]
    known, asked = labels_of(caches, taught), labels_of(caches, rows)
    taught, known = taught[known != None], known[known != None]  # noqa: E711
    classes = np.unique(known.astype(str))
    usable = np.isin(asked.astype(str), classes) & (asked != None)  # noqa: E711
    rows, asked = rows[usable], asked[usable]
    if len(classes) < 2 or not len(rows):
        return [], len(classes)
    labels, wanted = (
        torch.from_numpy(np.searchsorted(classes, values.astype(str))) for values in (known, asked)
    )
    x, test = reader.read(taught), reader.read(rows)
    device = next(iter(x.values())).device
    labels, wanted = labels.to(device), wanted.to(device)
    images = images_of(caches, rows)
    commonest = wanted == labels.bincount().argmax()
    scores = []
    for name in x:
        if name.startswith("untrained as "):
            continue
        given = x[name], labels, test[name], wanted
        knn, linear = knn_hits(*given), linear_hits(*given)
        scores.append(
            LabelScore(features=name, knn=_rate(knn, images), linear=_rate(linear, images))
        )
    constant = _rate(commonest, images)
    scores.append(LabelScore(features="constant", knn=constant, linear=constant))
    return sorted(scores, key=lambda score: _place(score.features)), len(classes)


def _place(features: str) -> int:
    """Teachers first, then the student, then what it must beat."""
    order = ("teacher", "student as", BACKBONE, UNTRAINED, PLAIN, "constant")
    return next(i for i, name in enumerate(order) if features.startswith(name))


def _rate(hits: Tensor, images: NDArray[Any]) -> Interval:
    return interval(by_image(values_and_ones(hits.cpu().double().numpy()), images))
