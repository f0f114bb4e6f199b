"""How far a student's features are from a teacher's, beside the constant that it must beat.

For predictions p and values y of a teacher, both raw, over images, tokens and channels, with m the
mean of the *training* rows:
    patches     error = mean |p - y|^2 / mean |m - y|^2           (the unexplained variance)
    directions  error = mean (1 - cos(p, y)) / mean (1 - cos(m, y))
so that 0 is the teacher itself and 1 no better than the constant. Summaries are directions unless
the summary loss was MSE. Values that are stored as codes are decoded without bias: the nearest
would prefer students that predict too little. The noise of the codes is then part of the error, the
same for all students.

n images, k = 4 columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from phistill.compute.precision import full_float32, widest_float
from phistill.stats.intervals import Interval, by_image, difference, interval, ratio

from ..data.source import PIXELS, Source
from ..data.stream import Rows
from ..student.predict import TrainedStudent
from ..targets import Target, learns_direction
from .index import images_of

BATCH_ROWS = 128

VERDICTS = {True: "", False: "NO BETTER THAN THE CONSTANT", None: "perhaps no better than it"}
"""By ``EvalRow.beats_constant``."""

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
    num_images: int
    """Views of one image are counted once: they are no independent draws."""

    mse: float | None
    """In the teacher's raw units; None where only the direction is learnt."""

    baseline: float | None
    """Mean squared deviation of these rows from the training mean: the constant's ``mse``."""

    cosine: float
    """Mean over vectors of cos(p, y)."""

    constant_cosine: float
    """The same of the training mean."""

    error: float
    """What students are compared by: see the module. Lower is better, 1 is the constant."""

    error_low: float | None
    """Of the 95 % interval over images; None, as ``error_high``, for too few of them."""

    error_high: float | None
    cache: str = ""
    """Which cache the rows are of; empty where there is only one."""

    of_codes: bool = False
    """Whether the teacher's values were decoded from codes, not the features themselves."""

    columns: Float[np.ndarray, "n 2"] | None = field(default=None, compare=False, repr=False)
    """Per image, in ascending order of ids: error and the constant's, whose sums' ratio is
    ``error``. Not in ``to_dict``."""

    cosines: Float[np.ndarray, "n 2"] | None = field(default=None, compare=False, repr=False)
    """The same of directions, whatever is learnt: what students of either kind have in common."""

    @property
    def column(self) -> str:
        """``TEACHER/KIND``, followed by ``@CACHE`` where there are several caches."""
        return f"{self.teacher}/{self.kind}" + (f"@{self.cache}" if self.cache else "")

    @property
    def score(self) -> float:
        """``error``."""
        return self.error

    @property
    def unexplained(self) -> float | None:
        """``error`` where it is a share of variance; None where only a direction is learnt."""
        return None if self.mse is None else self.error

    @property
    def beats_constant(self) -> bool | None:
        """Whether the interval lies below 1; False where it lies above, None where it holds 1 or
        there is none and the figure itself is below 1."""
        if self.error >= 1:
            return False
        return True if self.error_high is not None and self.error_high < 1 else None

    @property
    def interval(self) -> Interval:
        """``error`` with its interval."""
        return Interval(
            value=self.error, low=self.error_low, high=self.error_high, num_images=self.num_images
        )

    def minus(self, other: EvalRow) -> Interval:
        """This error minus another's on the same images, paired."""
        assert self.columns is not None
        assert other.columns is not None
        return difference(self.columns, other.columns)

    def shown(self) -> dict[str, str]:
        """The line of a table, by column; nothing is said against a student before training."""
        said = VERDICTS[self.beats_constant] if self.student != "untrained" else ""
        return {
            **({"cache": self.cache} if self.cache else {}),
            "student": self.student,
            "teacher": self.teacher,
            "kind": self.kind,
            "images": f"{self.num_images:,}",
            "error": f"{self.error:.3f}",
            "95 % interval": self.interval.between(),
            "mse": "-" if self.mse is None else f"{self.mse:.4g}",
            "cosine": f"{self.cosine:.3f}",
            "constant's": f"{self.constant_cosine:.3f}",
            "": said,
        }

    def to_dict(self) -> dict[str, Any]:
        """Every field that is JSON."""
        names = [one.name for one in fields(self) if one.name not in ("columns", "cosines")]
        return {name: getattr(self, name) for name in names}


class _Sums:
    """Per row: squared error, squared deviation, cosine, the constant's cosine; means over it."""

    def __init__(self, target: Target, mean: Tensor, *, directions: bool) -> None:
        self.target, self.mean, self.directions = target, mean, directions
        self.columns: list[Tensor] = []

    def add(self, prediction: Tensor, value: Tensor) -> None:
        y, wide = value.float(), widest_float(value.device)
        axes = tuple(range(1, y.ndim))
        error = (prediction - y).square().mean(axes, dtype=wide)
        deviation = (y - self.mean).square().mean(axes, dtype=wide)
        cosines = [
            F.cosine_similarity(x, y, dim=-1).reshape(len(y), -1).mean(1, dtype=wide)
            for x in (prediction, self.mean.expand_as(y))
        ]
        self.columns.append(torch.stack([error, deviation, *cosines], 1).cpu().double())

    def row(self, student: str, images: NDArray[Any]) -> EvalRow:
        table = torch.cat(self.columns).numpy()
        error, deviation, cosine, constant = table.T
        cosines = by_image(np.stack((1 - cosine, 1 - constant), 1), images)
        columns = cosines
        if not self.directions:
            columns = by_image(np.stack((error, deviation), 1), images)
        found = interval(columns, ratio)
        known = not self.directions
        return EvalRow(
            student=student,
            teacher=self.target.teacher,
            kind=self.target.kind,
            num_rows=len(table),
            num_images=len(columns),
            mse=float(error.mean()) if known else None,
            baseline=float(deviation.mean()) if known else None,
            cosine=float(cosine.mean()),
            constant_cosine=float(constant.mean()),
            error=found.value,
            error_low=found.low,
            error_high=found.high,
            columns=columns,
            cosines=cosines,
        )


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
    device = student.device
    sums = {
        target.key: _Sums(
            target,
            torch.tensor(means[target.key], dtype=torch.float32, device=device),
            directions=learns_direction(target, student.config.summary_loss),
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
            value = torch.from_numpy(source.unbiased[target.key].read(block)).to(device)
            sums[target.key].add(predictions[target.teacher][target.kind], value)
        if progress is not None:
            progress(min(start + BATCH_ROWS, len(rows)), len(rows))
    images = images_of(source.caches, rows)
    number = int(np.searchsorted(source.caches.starts, rows[0], side="right")) - 1
    stored = source.caches.caches[number]
    return [
        replace(
            sums[target.key].row(label, images),
            cache=cache,
            of_codes=target.kind in stored.teacher(target.teacher).codecs,
        )
        for target in student.targets
    ]


def mean_score(lines: Sequence[EvalRow]) -> float:
    """One number for a student, lower is better: the mean error over teachers and token kinds.

    Over several caches, the mean of what each of them gives.
    """
    return math.fsum(line.error for line in lines) / len(lines)
