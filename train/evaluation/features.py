"""All features that are compared, read together: teachers, the student in their place and bare, the
same untrained, and plain pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from phistill.compute.precision import full_float32

from ..data.source import PIXELS, Source
from ..data.stream import Rows
from ..student.pixels import to_images
from ..student.predict import TrainedStudent
from ..targets import PATCHES, SUMMARY, Target
from .fidelity import BATCH_ROWS
from .tasks import BACKBONE, PLAIN, UNTRAINED

PIXEL_SIDE = 16
"""Side of the picture that stands for the plain pixels of an image."""

CELL_SIDE = 4
"""The same of those under one token of the student."""


class FeatureReader:
    """Reads rows once for everything that is compared."""

    def __init__(self, source: Source, student: TrainedStudent, untrained: TrainedStudent) -> None:
        self.source, self.students = source, {"student": student, "untrained": untrained}
        self.targets: dict[str, Target] = {}
        for target in student.targets:  # the summary comes last, and wins
            if target.kind == SUMMARY or target.teacher not in self.targets:
                self.targets[target.teacher] = target
        self.teachers = list(self.targets)
        self._dense = {t.teacher: t for t in student.targets if t.kind == PATCHES}

    def vectors(self, rows: Rows) -> dict[str, Tensor]:
        """(n, c) by name, on the student's device: a teacher's summary or, where it has none, the
        mean of its patches."""
        return _joined(map(self._vectors, _blocks(rows)))

    def grids(self, rows: Rows) -> dict[str, Tensor]:
        """(n, h, w, c) by name: patches of teachers, tokens of backbones, pixels under these."""
        return _joined(map(self._grids, _blocks(rows)))

    @torch.inference_mode()
    def _vectors(self, rows: Rows) -> dict[str, Tensor]:
        found, pixels = self._read(rows, self.targets, _one_vector)
        for who, backbone in (("student", BACKBONE), ("untrained", UNTRAINED)):
            with full_float32():
                found[backbone] = self.students[who].features(pixels)[1]
        device = self.students["student"].device
        found[PLAIN] = to_images(pixels, PIXEL_SIDE).flatten(1).to(device)
        return found

    @torch.inference_mode()
    def _grids(self, rows: Rows) -> dict[str, Tensor]:
        found, pixels = self._read(rows, self._dense, _grid)
        for who, backbone in (("student", BACKBONE), ("untrained", UNTRAINED)):
            with full_float32():
                found[backbone] = self.students[who].features(pixels)[0]
        height, width = found[BACKBONE].shape[1:3]
        images = to_images(pixels, self.students["student"].image_size)
        fine = F.adaptive_avg_pool2d(images, (height * CELL_SIDE, width * CELL_SIDE))
        cells = F.pixel_unshuffle(fine, CELL_SIDE).permute(0, 2, 3, 1)
        found[PLAIN] = cells.to(found[BACKBONE].device)
        return found

    def _read(
        self,
        rows: Rows,
        targets: dict[str, Target],
        shape: Callable[[Tensor, Target], Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What teachers say of these rows and students in their place; and the stored pixels."""
        pixels = torch.from_numpy(self.source.readers[PIXELS].read(rows))
        device = self.students["student"].device
        found = {}
        for name, target in targets.items():
            stored = torch.from_numpy(self.source.readers[target.key].read(rows)).to(device)
            found[f"teacher {name}"] = shape(stored.float(), target)
        for who, student in self.students.items():
            with full_float32():
                answers = student.predict(pixels)
            for name, target in targets.items():
                found[f"{who} as {name}"] = shape(answers[name][target.kind], target)
        return found, pixels


def _one_vector(values: Tensor, target: Target) -> Tensor:
    return values if target.kind == SUMMARY else values.mean(1)


def _grid(values: Tensor, target: Target) -> Tensor:
    return values.unflatten(1, tuple(target.grid))


def _blocks(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS))


def _joined(blocks: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for block in blocks:
        for name, values in block.items():
            parts.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in parts.items()}
