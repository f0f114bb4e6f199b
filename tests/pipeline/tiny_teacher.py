"""A teacher of a user's own, as small as the contract allows; reached as ``module:...``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from phistill.pipeline.teachers.contract import Features, Preprocessing


class TinyTeacher:
    """Patches are 4 x 4 means of the input and their squares; the summary is their mean.

    ``poison`` makes the features of every image whose mean red exceeds it NaN. A forward pass takes
    ``pause`` seconds, so that a test can come in between.
    """

    def __init__(self, scale: float, poison: float, pause: float = 0.0) -> None:
        self._scale, self._poison, self._pause = scale, poison, pause

    def identity(self) -> Mapping[str, Any]:
        return {"source": "test", "scale": self._scale, "poison": self._poison}

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        pass

    def features(self, images: torch.Tensor) -> Features:
        time.sleep(self._pause)
        means = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1) * self._scale
        patches = torch.cat([means, means**2], dim=-1)
        poisoned = images[:, 0].mean(dim=(1, 2)) > self._poison
        patches[poisoned] = float("nan")
        return Features(patches, patches.mean(dim=(1, 2)))


def build(model: str, options: dict[str, str]) -> TinyTeacher:
    return TinyTeacher(
        float(options.get("scale", 1.0)),
        float(options.get("poison", 1e9)),
        float(options.get("pause", 0.0)),
    )
