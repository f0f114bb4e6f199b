"""Zero-shot classification and retrieval by a run's student in the place of a teacher with a text
tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, open_caches
from phistill.errors import UsageError
from phistill.stats.intervals import without_interval

from ..checkpoint import caches_of_run
from ..data.source import PIXELS, Source, parts_of
from ..student.predict import TrainedStudent, load_run
from ..targets import SUMMARY, Target
from .fidelity import BATCH_ROWS
from .index import column, images_of, labels_of
from .tasks import CONSTANT, TaskScore, rate
from .teacher_tools import (
    TEMPLATES,
    Encode,
    average_precision,
    class_vectors,
    retrieval_hits,
    zero_shot_hits,
)

FIRST = 10
"""Captions of an image, or images of a caption, must be among so many nearest."""


def text_scores(
    run: Path | str,
    encoders: Mapping[str, Encode],
    cache: CacheArgument | None = None,
    *,
    classes: Mapping[str, str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    captions: Mapping[str, Sequence[str]] | None = None,
    which: str = "latest",
    split: Split = "heldout",
    device: str = "auto",
) -> list[TaskScore]:
    """Teacher, student, untrained student and constant, for each teacher in ``encoders``, which
    embed texts (``Teacher.text_features``).

    ``classes`` gives the words for each label; by default the labels that ``split`` has are their
    own words. Images of other labels, or of none, are left out. ``captions`` are texts by image
    id, one or several: with them images are found by their captions and captions by their images.
    UsageError where there is neither, or a teacher has no summary in the run.
    """
    student = load_run(run, which=which, device=device)
    untrained = load_run(run, which=which, untrained=True, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    teachers = list(student.facts["teachers"])
    rows = np.concatenate([part.rows for part in parts_of(caches, teachers, split, 0)])
    labels = labels_of(caches, rows)
    words = classes or {name: name for name in sorted({str(x) for x in labels if x is not None})}
    named = np.array([label is not None and str(label) in words for label in labels], bool)
    texts = [(captions or {}).get(name, ()) for name in column(caches, rows, "id")]
    captioned = np.array([len(own) > 0 for own in texts], bool)
    if captions and not captioned.any():
        num = sum(map(len, captions.values()))
        raise UsageError(f"none of the {num} captions is of a {split} image, by its id.")
    is_named = len(words) > 1 and named.any()
    if not (is_named or captioned.any()) or (classes and not is_named):
        raise UsageError(
            f"{len(words)} classes and {named.sum()} {split} images of theirs: zero-shot needs two "
            "classes at least, named as the cache's labels are."
        )
    images, source = images_of(caches, rows), Source(caches, student.targets)
    scores: list[TaskScore] = []
    for teacher, encode in encoders.items():
        target = _summary_of(student, teacher)
        mean = torch.tensor(student.facts["means"][target.key])[None].float()
        features = _features(source, target, rows, {"student": student, "untrained": untrained})
        features[CONSTANT] = mean.expand(len(rows), -1)
        if is_named:
            asked = {name: values[named] for name, values in features.items()}
            scores += _of_classes(
                teacher, encode, asked, words, templates, labels[named], images[named]
            )
        if captioned.any():
            asked = {name: values[captioned] for name, values in features.items()}
            wanted = [own for own in texts if own]
            scores += _of_captions(teacher, encode, asked, wanted, images[captioned])
    return scores


def _of_classes(
    teacher: str,
    encode: Encode,
    features: Mapping[str, Tensor],
    words: Mapping[str, str],
    templates: Sequence[str],
    labels: NDArray[Any],
    images: NDArray[Any],
) -> list[TaskScore]:
    """Share of images whose own class is the nearest text; mean over classes of the average
    precision of its images, ranked by its text, which has no interval."""
    numbers = {name: number for number, name in enumerate(words)}
    wanted = torch.tensor([numbers[str(label)] for label in labels])
    vectors = class_vectors(encode, list(words.values()), templates).cpu()
    named = {k: rate(zero_shot_hits(x, vectors, wanted), images) for k, x in features.items()}
    found = {
        k: without_interval(
            float(np.nanmean(average_precision(x, vectors, wanted))), named[k].num_images
        )
        for k, x in features.items()
    }
    return [
        TaskScore(task=f"{task} {teacher}", features=name, score=one, num_classes=len(words))
        for task, scores in (("zero-shot", named), ("retrieval mAP", found))
        for name, one in scores.items()
    ]


def _of_captions(
    teacher: str,
    encode: Encode,
    features: Mapping[str, Tensor],
    texts: Sequence[Sequence[str]],
    images: NDArray[Any],
) -> list[TaskScore]:
    """Share of images with an own caption among the FIRST nearest, and of captions with an own
    image; ``texts`` are those of each row, and equal ones are all of an image that has one."""
    every = [text for own in texts for text in own]
    row = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
    vectors = encode(every).float().cpu()
    _, number = np.unique(np.asarray(every), return_inverse=True)
    has = torch.zeros(len(texts), number.max() + 1, dtype=torch.bool)
    has[row, number] = True
    same = has[:, number]  # (n, m)
    return [
        TaskScore(task=f"{task} R@{FIRST} {teacher}", features=name, score=rate(hits, whose))
        for name, x in features.items()
        for task, hits, whose in (
            ("image to text", retrieval_hits(x, vectors, same, FIRST), images),
            ("text to image", retrieval_hits(vectors, x, same.T, FIRST), images[row]),
        )
    ]


def _summary_of(student: TrainedStudent, teacher: str) -> Target:
    for target in student.targets:
        if (target.teacher, target.kind) == (teacher, SUMMARY):
            return target
    raise UsageError(f"the run has no summary of {teacher!r}, which texts could be compared with.")


def _features(
    source: Source, target: Target, rows: Any, students: Mapping[str, TrainedStudent]
) -> dict[str, Tensor]:
    """(n, d) on the CPU: the teacher's own, and each student's answer."""
    own = f"teacher {target.teacher}"
    blocks: dict[str, list[Tensor]] = {own: []}
    for start in range(0, len(rows), BATCH_ROWS):
        some = rows[start : start + BATCH_ROWS]
        pixels = source.readers[PIXELS].read(some)
        blocks[own].append(torch.from_numpy(source.readers[target.key].read(some)).float())
        for name, one in students.items():
            answer = one.predict(pixels)[target.teacher][SUMMARY].float().cpu()
            blocks.setdefault(f"{name} as {target.teacher}", []).append(answer)
    return {name: torch.cat(parts) for name, parts in blocks.items()}
