"""Zero-shot classification and retrieval by a run's student in the place of a teacher with a text
tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, open_caches
from phistill.errors import UsageError
from phistill.stats.intervals import Interval, by_image, interval, values_and_ones

from ..data.source import PIXELS, Source, parts_of
from ..student.predict import TrainedStudent, load_run
from ..targets import SUMMARY, Target
from .evaluate import caches_of_run
from .fidelity import BATCH_ROWS
from .index import images_of, labels_of
from .teacher_tools import TEMPLATES, Encode, average_precision, class_vectors, zero_shot_hits


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScore:
    """What one kind of features says of classes that are only named."""

    teacher: str
    """Whose text tower it is."""
    features: str
    """``teacher``, ``student``, ``untrained``, or ``constant``: the training mean."""
    accuracy: Interval
    """Share of images whose own class is the nearest text."""
    retrieval: float
    """Mean over classes of the average precision of its images, ranked by its text."""
    num_classes: int

    def to_dict(self) -> dict[str, Any]:
        """Named quantities."""
        return {
            **{name: getattr(self, name) for name in ("teacher", "features", "num_classes")},
            "zero_shot_accuracy": self.accuracy.to_dict(),
            "mean_average_precision": self.retrieval,
        }


def text_scores(
    run: Path | str,
    encoders: Mapping[str, Encode],
    cache: CacheArgument | None = None,
    *,
    classes: Mapping[str, str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    which: str = "latest",
    split: Split = "heldout",
    device: str = "auto",
) -> list[TextScore]:
    """Four lines for each teacher in ``encoders``, which embed texts (``Teacher.text_features``).

    ``classes`` gives the words for each label; by default the labels that ``split`` has are their
    own words. Images of other labels, or of none, are left out. UsageError where fewer than two
    classes are left, or a teacher has no summary in the run.
    """
    student = load_run(run, which=which, device=device)
    untrained = load_run(run, which=which, untrained=True, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    teachers = list(student.facts["teachers"])
    rows = np.concatenate([part.rows for part in parts_of(caches, teachers, split, 0)])
    labels = labels_of(caches, rows)
    words = classes or {name: name for name in sorted({str(x) for x in labels if x is not None})}
    usable = np.array([label is not None and str(label) in words for label in labels], bool)
    rows, labels = rows[usable], labels[usable]
    if len(words) < 2 or not rows.size:
        raise UsageError(
            f"{len(words)} classes and {rows.size} {split} images of theirs: zero-shot needs two "
            "classes at least, named as the cache's labels are."
        )
    numbers = {name: number for number, name in enumerate(words)}
    wanted = torch.tensor([numbers[str(label)] for label in labels])
    images = images_of(caches, rows)
    source = Source(caches, student.targets)
    scores = []
    for teacher, encode in encoders.items():
        target = _summary_of(student, teacher)
        vectors = class_vectors(encode, list(words.values()), templates).cpu()
        mean = torch.tensor(student.facts["means"][target.key])[None].float()
        features = _features(source, target, rows, {"student": student, "untrained": untrained})
        features["constant"] = mean.expand(len(rows), -1)
        for name, values in features.items():
            hits = zero_shot_hits(values, vectors, wanted).double().numpy()
            precision = average_precision(values, vectors, wanted)
            scores.append(
                TextScore(
                    teacher=teacher,
                    features=name,
                    accuracy=interval(by_image(values_and_ones(hits), images)),
                    retrieval=float(np.nanmean(precision)),
                    num_classes=len(words),
                )
            )
    return scores


def _summary_of(student: TrainedStudent, teacher: str) -> Target:
    for target in student.targets:
        if (target.teacher, target.kind) == (teacher, SUMMARY):
            return target
    raise UsageError(f"the run has no summary of {teacher!r}, which texts could be compared with.")


def _features(
    source: Source, target: Target, rows: Any, students: Mapping[str, TrainedStudent]
) -> dict[str, Tensor]:
    """(n, d) on the CPU: the teacher's own, and each student's answer."""
    blocks: dict[str, list[Tensor]] = {"teacher": [], **{name: [] for name in students}}
    for start in range(0, len(rows), BATCH_ROWS):
        some = rows[start : start + BATCH_ROWS]
        pixels = source.readers[PIXELS].read(some)
        blocks["teacher"].append(torch.from_numpy(source.readers[target.key].read(some)).float())
        for name, one in students.items():
            blocks[name].append(one.predict(pixels)[target.teacher][SUMMARY].float().cpu())
    return {name: torch.cat(parts) for name, parts in blocks.items()}
