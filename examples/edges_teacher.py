"""A teacher family of your own: filters that answer to edges at several widths.

    phistill check-teacher 'module:edges_teacher:build?widths=4'
    phistill extract IMAGES --cache my.cache --teacher 'edges=module:edges_teacher:build?widths=4'

A package gives it a name with one line in its pyproject.toml; then it is ``edges:fine`` and
``edges:coarse``:

    [project.entry-points."phistill.teachers"]
    edges = "edges_teacher:build"
"""

from __future__ import annotations

import math
from typing import Any

import torch

from phistill.errors import UsageError
from phistill.pipeline import Features, Preprocessing, Teacher
from phistill.pipeline.teachers.options import integer, take_options

NUM_ANGLES = 8
SIDE, CELL = 128, 8
"""Pixels of the input, and of a patch."""
FIRST_WIDTH = {"": 1.0, "fine": 1.0, "coarse": 2.0}


class EdgesTeacher(Teacher):
    """Mean strength of edges in each patch, by angle and width; the summary is their mean."""

    licence = "apache-2.0"

    def __init__(self, first_width: float, num_widths: int) -> None:
        self._identity = {"source": "edges", "first": first_width, "widths": num_widths}
        filters = [
            _filter(first_width * 2**octave, math.pi * angle / NUM_ANGLES)
            for octave in range(num_widths)
            for angle in range(NUM_ANGLES)
        ]
        self._filters = torch.stack(filters)[:, None]  # (c, 1, k, k)

    def identity(self) -> dict[str, Any]:
        return self._identity

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def to(self, device: torch.device) -> None:
        self._filters = self._filters.to(device)

    def features(self, images: torch.Tensor) -> Features:
        grey = images.mean(1, keepdim=True)
        answers = torch.nn.functional.conv2d(grey, self._filters, padding="same").abs()
        maps = torch.nn.functional.avg_pool2d(answers, CELL)  # (b, c, h, w)
        return Features(patches=maps.permute(0, 2, 3, 1), summary=maps.mean((2, 3)))


def build(model: str, options: dict[str, str]) -> Teacher:
    """``model`` is what follows a registered name; with ``module:`` it is empty."""
    if model not in FIRST_WIDTH:
        raise UsageError(f"edges:{model} does not exist; choose fine or coarse.")
    take_options(options, ("widths",), "edges")
    num_widths = integer(options, "widths")
    return EdgesTeacher(FIRST_WIDTH[model], 3 if num_widths is None else num_widths)


def _filter(width: float, angle: float) -> torch.Tensor:
    """The derivative of a Gaussian across ``angle``, (k, k), its absolute values summing to 1."""
    at = torch.arange(-16, 17, dtype=torch.float32)
    y, x = torch.meshgrid(at, at, indexing="ij")
    across = x * math.cos(angle) + y * math.sin(angle)
    values = across * torch.exp(-(x**2 + y**2) / (2 * width**2))
    return values / values.abs().sum()
