"""Teachers that break their contract, one way each."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tiny_teacher import TinyTeacher  # type: ignore[import-not-found]

from phistill.pipeline.teachers.contract import Features

COUNT = itertools.count()


class Bad(TinyTeacher):  # type: ignore[misc]
    def __init__(self, how: str) -> None:
        super().__init__(1.0, 1e9)
        self._how = how

    def identity(self) -> dict[str, Any]:
        found = dict(super().identity())
        if self._how == "identity":
            found["call"] = next(COUNT)
        return found

    def features(self, images: torch.Tensor) -> Features:
        found: Features = super().features(images)
        patches = found.patches
        if self._how == "random":
            patches = patches + torch.rand_like(patches)
        if self._how == "nan":
            patches[0, 0, 0, 0] = float("nan")
        if self._how == "large":
            patches = patches * 1e6
        if self._how == "blind":
            patches = torch.ones_like(patches)
        if self._how == "pair" and len(images) == 1:
            raise IndexError("wants two")
        return Features(patches, found.summary)


def build(model: str, options: dict[str, str]) -> Bad:
    return Bad(options["how"])
