"""The numbers a report says about runs: learning curves, evaluations, what diverged.

A patch loss in one normalizer's coordinates says nothing beside one in another's. Where it is an
MSE it is divided by the error of the mean in the same coordinates (see gather.py): 1 is a student
that predicts the training mean. For none, global, isotropic and phi-s, which change all channels
by one scale, that quotient is the unexplained variance itself; the others weigh directions anew.
Other losses keep their own unit, and ``Curve.unit`` says which curves share one. Errors on held-out
images are one quantity for all runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from phistill.cache import Cache
from phistill.errors import MissingMoments, StaleMoments, UsageError
from phistill.stats import load_moments
from phistill.train import EvalRow, TrainedStudent, evaluate, load_run
from phistill.train.checkpoint import FOLDER, stored_facts
from phistill.train.curve import unweighted
from phistill.train.metrics import read_metrics
from phistill.train.run_folder import DIVERGED, is_diverged
from phistill.train.sweeps.results import CELL, read_result

from .gather import BEFORE as NO_NORMALIZER
from .gather import PATCHES, Note, channel_variances

RELATIVE = "mse / constant's"
"""The unit of a mean squared error that is divided by that of the mean: unexplained variance."""

WEIGHED = {
    "standardize": f"standardized {RELATIVE}",
    **dict.fromkeys(("pca", "zca", "hca"), f"whitened {RELATIVE}"),
}
"""The same under normalizers that give directions other weights: another quantity."""

MAX_POINTS = 120
"""Points of a learning curve; more steps than that are averaged in equal bins."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """One term of one run over its steps."""

    target: str
    """TEACHER/KIND."""

    unit: str
    """What ``values`` are, see ``unit_of``; curves of one unit may be compared."""

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    values_per_point: float
    """Logged values averaged into one point."""

    checks: tuple[tuple[int, float], ...]
    """(step, error on held-out rows as ``evaluate`` has it), where the run measured it."""

    def is_beside(self, other: Curve) -> bool:
        """Whether both are of the same target, unit and steps."""
        same = (self.target, self.unit) == (other.target, other.unit)
        return same and np.array_equal(self.steps, other.steps)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunFacts:
    """One run: how it was trained and what came of it."""

    name: str
    path: Path
    student: TrainedStudent
    curves: tuple[Curve, ...]
    losses: tuple[float, ...]
    """One per logged line, all terms together and without weights (see train/curve.py)."""

    evaluation: tuple[EvalRow, ...]

    @property
    def trained(self) -> tuple[EvalRow, ...]:
        """The evaluation without what an untrained student scores."""
        return tuple(line for line in self.evaluation if line.student == "trained")

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.student.student.parameters())

    def row(self, teacher: str, kind: str, label: str = "trained") -> EvalRow | None:
        """The evaluation of one target; None where the run did not learn it."""
        for line in self.evaluation:
            if (line.teacher, line.kind, line.student) == (teacher, kind, label):
                return line
        return None


def gather_runs(
    cache: Cache,
    runs: Sequence[Path],
    *,
    evaluations: Mapping[Path, Sequence[EvalRow]],
    can_evaluate: bool,
    device: str,
    note: Note = lambda text: None,
) -> tuple[RunFacts, ...]:
    """Load every run; evaluate those that ``evaluations`` does not hold already."""
    gathered = []
    for name, path in zip(run_names(runs), runs, strict=True):
        note(f"run {name}")
        student = load_run(path, device=device)
        lines = evaluations.get(path)
        if lines is None:
            lines = evaluate(path, cache, untrained=False, device=device) if can_evaluate else ()
        gathered.append(
            RunFacts(
                name=name,
                path=path,
                student=student,
                curves=tuple(curves_of(cache, path, student)),
                losses=tuple(unweighted(read_metrics(path, "train"))),
                evaluation=tuple(lines),
            )
        )
    return tuple(gathered)


def runs_below(path: Path) -> list[Path]:
    """The run itself, or those of a sweep's folder that did not diverge, by name."""
    cells = sorted(found.parent for found in path.glob("*/config.json"))
    if (path / "config.json").exists() or not cells:
        return [path]
    return [cell for cell in cells if (cell / FOLDER).is_dir() and not is_diverged(cell)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diverged:
    """A run that ended at a step that was not finite."""

    name: str
    setting: str
    changes: Mapping[str, Any]
    """What the setting sets, the lr first."""

    step: int


def diverged_below(path: Path) -> list[Diverged]:
    """The runs of a sweep's folder that ``runs_below`` leaves out for they diverged."""
    cells = sorted(found.parent for found in path.glob("*/config.json"))
    return [_diverged(cell) for cell in cells if is_diverged(cell)]


def _diverged(run: Path) -> Diverged:
    config = (stored_facts(run) or {}).get("config", {})
    changes, setting = {"lr": config.get("lr")}, run.name
    if (run / CELL).exists():
        cell = read_result(run)
        changes, setting = {**changes, **cell.settings}, cell.setting
    changes.pop("seed", None)
    return Diverged(
        name=run.name,
        setting=setting,
        changes=changes,
        step=int(json.loads((run / DIVERGED).read_bytes())["step"]),
    )


def run_names(runs: Sequence[Path]) -> list[str]:
    """The shortest tails of the paths that differ; UsageError when two are the same folder."""
    full = [path.resolve() for path in runs]
    if len(set(full)) != len(full):
        raise UsageError(f"runs={[str(path) for path in runs]} names one folder twice.")
    depth = 1
    while len({path.parts[-depth:] for path in full}) < len(full):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in full]


def curves_of(cache: Cache, path: Path, student: TrainedStudent) -> list[Curve]:
    """A curve per target of the run; none when the run has no log."""
    lines = read_metrics(path, "train")
    checks = read_metrics(path, "validate")
    curves = []
    for target in student.targets:
        logged = [line for line in lines if target.key in line.get("losses", {})]
        if not logged:
            continue
        steps = np.array([line["step"] for line in logged], dtype=np.float64)
        values = np.array([line["losses"][target.key] for line in logged], dtype=np.float64)
        unit = error_of_the_mean(cache, student, target.key)
        steps, binned = in_bins(steps, values / (unit or 1.0))
        curves.append(
            Curve(
                target=target.key,
                unit=unit_of(student, target.key, is_relative=unit is not None),
                steps=steps,
                values=binned,
                values_per_point=len(logged) / len(steps),
                checks=tuple(_checks(checks, target.key)),
            )
        )
    return curves


def unit_of(student: TrainedStudent, key: str, *, is_relative: bool) -> str:
    """Of a term: RELATIVE or one of WEIGHED; else ``cosine``, ``cosine of phi-s``."""
    is_patches = key.rpartition("/")[2] == PATCHES
    loss = student.config.patch_loss if is_patches else student.config.summary_loss
    method = student.normalizers[key].method if student.normalizers else NO_NORMALIZER
    if is_relative:
        return WEIGHED.get(method, RELATIVE)
    return loss if method == NO_NORMALIZER else f"{loss} of {method}"


def error_of_the_mean(cache: Cache, student: TrainedStudent, key: str) -> float | None:
    """mean(diag(W S W^T)) with the run's own W; None for a loss that is no MSE of patches."""
    teacher, kind = key.split("/")
    normalizers = student.normalizers
    if kind != PATCHES or student.config.patch_loss != "mse" or normalizers is None:
        return None
    try:
        moments = load_moments(cache, teacher, kind)
    except (MissingMoments, StaleMoments, UsageError):
        return None
    return float(np.mean(channel_variances(moments, normalizers[key])))


def in_bins(
    steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], limit: int = MAX_POINTS
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Means over at most ``limit`` runs of neighbours whose lengths differ by one at most."""
    parts = min(limit, len(steps))
    return (
        np.array([part.mean() for part in np.array_split(steps, parts)]),
        np.array([part.mean() for part in np.array_split(values, parts)]),
    )


def _checks(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    named = [(int(line["step"]), line.get(key, {}).get("error")) for line in lines]
    return [(step, float(value)) for step, value in named if value is not None]
