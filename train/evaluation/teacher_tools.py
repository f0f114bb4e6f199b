"""A teacher's own tools on features in its place: its text tower, and decoders of its patches.

Features are a teacher's, or a student's answer for it (``TrainedStudent.predict``): both are in the
teacher's space, so what was made for the one takes the other.

n images, k classes, m texts, d width of a summary, (h, w) grid, c width of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from phistill.errors import UsageError

from ..student.predict import TrainedStudent
from ..targets import PATCHES

TEMPLATES = ("a photo of a {}.",)
"""As in CLIP's own evaluation (arXiv:2103.00020, section 3.1.4), its first."""

Encode = Callable[[Sequence[str]], Tensor]
"""Texts to (m, d): ``Teacher.text_features``."""


def class_vectors(
    encode: Encode, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "k d"]:
    """One direction per class: the mean over the templates of the text's unit vectors, unit again.

    ``{}`` in a template stands for the class.
    """
    if not classes or not all("{}" in template for template in templates) or not templates:
        raise UsageError("classes and templates are wanted, and {} in each template.")
    texts = [template.replace("{}", name) for name in classes for template in templates]
    units = F.normalize(encode(texts).float(), dim=-1)
    return F.normalize(units.unflatten(0, (len(classes), -1)).mean(1), dim=-1)


def zero_shot_hits(
    images: Float[Tensor, "n d"], classes: Float[Tensor, "k d"], wanted: Int[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Whether the class nearest by cosine is the wanted one."""
    return _cosines(images, classes).argmax(1) == wanted


def average_precision(
    images: Float[Tensor, "n d"], classes: Float[Tensor, "k d"], labels: Int[Tensor, " n"]
) -> Float[np.ndarray, " k"]:
    """Of each class's images among all, ranked by cosine with its text: the mean, over its images,
    of the share of its images among those ranked as high. NaN for a class without images."""
    order = _cosines(images, classes).argsort(dim=0, descending=True, stable=True)  # (n, k)
    hit = (labels[order] == torch.arange(len(classes), device=labels.device)).double()
    places = torch.arange(1, len(images) + 1, device=hit.device)[:, None]
    precision = hit.cumsum(0) / places
    return ((precision * hit).sum(0) / hit.sum(0)).cpu().numpy()


def retrieval_hits(
    queries: Float[Tensor, "n d"],
    gallery: Float[Tensor, "m d"],
    correct: Bool[Tensor, "n m"],
    first: int = 1,
) -> Bool[Tensor, " n"]:
    """Whether a correct item is among the ``first`` nearest by cosine: R@1, R@5, ... of captions by
    images, or of images by captions."""
    nearest = _cosines(queries, gallery).topk(min(first, len(gallery)), dim=1).indices
    return correct.gather(1, nearest).any(1)


def decoded(
    student: TrainedStudent,
    teacher: str,
    decoder: Callable[[Float[Tensor, "n h w c"]], Any],
    pixels: UInt8[Tensor, "n S S 3"] | UInt8[np.ndarray, "n S S 3"],
) -> Any:
    """What a decoder of a teacher's patches makes of a student's, on the teacher's grid."""
    patches = student.predict(pixels)[_known(student, teacher)][PATCHES]
    (grid,) = (t.grid for t in student.targets if (t.teacher, t.kind) == (teacher, PATCHES))
    return decoder(patches.unflatten(1, tuple(grid)))


def overlaps(
    predicted: Int[Tensor, "n h w"], wanted: Int[Tensor, "n h w"], num_classes: int
) -> Float[np.ndarray, "n k2"]:
    """Per image the pixels in the intersection of each class, and then in its union; those below 0
    in ``wanted`` are not counted."""
    counted = wanted >= 0
    parts: list[Tensor] = []
    for name in range(num_classes):
        one, other = (predicted == name) & counted, wanted == name
        parts += [(one & other).sum((1, 2)), (one | other).sum((1, 2))]
    return torch.stack([*parts[0::2], *parts[1::2]], 1).double().cpu().numpy()


def mean_iou(sums: Float[np.ndarray, "b k2"]) -> Float[np.ndarray, " b"]:
    """Intersection over union, a mean over the classes that are there: the statistic of
    ``stats.intervals`` over what ``overlaps`` counts."""
    both, either = np.split(np.asarray(sums, np.float64), 2, axis=1)
    each = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
    there = np.isfinite(each)
    num = there.sum(1)
    total = np.where(there, each, 0.0).sum(1)
    return np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0)


def _known(student: TrainedStudent, teacher: str) -> str:
    names = [t.teacher for t in student.targets if t.kind == PATCHES]
    if teacher not in names:
        raise UsageError(f"the student has no patches of {teacher!r}; it has {', '.join(names)}.")
    return teacher


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    """(n, m)."""
    return F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
