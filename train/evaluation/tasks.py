"""What features are good for: one figure per task and kind of features, for one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from phistill.stats.intervals import Interval, by_image, interval, values_and_ones

BACKBONE, UNTRAINED = "student, backbone", "untrained, backbone"
PLAIN, CONSTANT = "plain pixels", "constant"

_ORDER = ("teacher ", "student as ", BACKBONE, "untrained as ", UNTRAINED, PLAIN, CONSTANT)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """What one kind of features makes of one task; higher is better."""

    task: str
    """``kNN``, ``linear probe``, ``zero-shot TEACHER``, ``mean IoU``, ..."""

    features: str
    """``teacher NAME``, ``student as NAME``, ``untrained as NAME``, a backbone, plain pixels or the
    constant."""

    score: Interval
    num_classes: int | None = None
    """None where nothing is classified."""

    def to_dict(self) -> dict[str, Any]:
        """Named quantities, JSON-able."""
        return {
            "task": self.task,
            "features": self.features,
            "num_classes": self.num_classes,
            **self.score.to_dict(),
        }


def in_order(features: Sequence[str]) -> list[str]:
    """Each once: teachers first, then the student, then what it must beat."""
    return sorted(
        dict.fromkeys(features),
        key=lambda name: next(i for i, begin in enumerate(_ORDER) if name.startswith(begin)),
    )


def rate(hits: Tensor, images: NDArray[Any]) -> Interval:
    """The share of hits, one for each row, with its interval over images."""
    return interval(by_image(values_and_ones(hits.cpu().double().numpy()), images))
