"""What a sweep's folder holds of each cell: its settings, how it was evaluated, or where it ended.

NAME/cell.json                 what the table calls it
NAME/evaluation.json           a line per teacher and token kind, once it is finished
NAME/evaluation.safetensors    the same per image, so that students can be compared in pairs
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from phistill.cache.format import tensor_file
from phistill.cache.storage import publish

from ..evaluation import EvalRow
from ..run_folder import DIVERGED, is_diverged
from .cells import Cell

CELL, EVALUATION, PER_IMAGE = "cell.json", "evaluation.json", "evaluation.safetensors"

Sums = Mapping[str, Float[np.ndarray, "n 4"]]
"""By column, a line per image, sums over the image's views: the student's error and the constant's
(1 - cosine where only directions are learnt), then 1 - cosine of both."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CellResult:
    """One cell as its folder tells."""

    name: str
    setting: str
    settings: Mapping[str, Any]
    lines: tuple[EvalRow, ...] = ()
    """Empty until it is finished."""

    sums: Sums = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    """By column: a digest of the images that were measured."""

    diverged_at: int | None = None
    """The step that was not finite."""

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


def write_cell(folder: Path, cell: Cell) -> None:
    """Before it is trained."""
    facts = {"setting": cell.setting, "settings": cell.settings}
    _publish(folder / cell.name / CELL, facts)


def write_evaluation(run: Path, lines: Sequence[EvalRow], images: Mapping[str, str]) -> None:
    """Of a finished cell; the lines come last and say that it is."""
    sums = {line.column: _sums(line) for line in lines}
    publish.publish_bytes(run / PER_IMAGE, tensor_file.encode(sums, {"images": dict(images)}))
    _publish(run / EVALUATION, [line.to_dict() for line in lines])


def forget_evaluation(run: Path) -> None:
    """Of a cell that gets more steps."""
    publish.remove(run / EVALUATION)


def is_finished(run: Path) -> bool:
    return (run / EVALUATION).exists()


def read_results(folder: Path) -> list[CellResult]:
    """Every cell below a sweep's folder, whatever file asked for it, ordered by name."""
    return [read_result(path.parent) for path in sorted(folder.glob(f"*/{CELL}"))]


def read_result(run: Path) -> CellResult:
    """One cell."""
    facts = json.loads((run / CELL).read_bytes())
    named = {"name": run.name, "setting": facts["setting"], "settings": facts["settings"]}
    if is_finished(run):
        lines = [EvalRow(**line) for line in json.loads((run / EVALUATION).read_bytes())]
        sums, about = tensor_file.decode((run / PER_IMAGE).read_bytes())
        return CellResult(**named, lines=tuple(lines), sums=sums, images=about["images"])
    if is_diverged(run):
        step = json.loads((run / DIVERGED).read_bytes())["step"]
        return CellResult(**named, diverged_at=int(step))
    return CellResult(**named)


def _sums(line: EvalRow) -> Float[np.ndarray, "n 4"]:
    assert line.columns is not None
    assert line.cosines is not None
    return np.concatenate([line.columns, line.cosines], 1)


def _publish(path: Path, value: Any) -> None:
    publish.publish_bytes(path, json.dumps(value, indent=1).encode())
