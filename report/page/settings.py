"""Settings of several seeds: what they are called, how they rank, and what tells them apart.

A setting is what a report compares, draws and names: all runs that differ by their seed alone. Its
error is the mean over its seeds of the mean over targets. Two settings are compared by
the difference of these means: over images, by paired bootstrap of the errors averaged over seeds,
and over seeds, by Student's t on the differences of equal seeds, as a sweep's own table does.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from phistill.stats.intervals import Interval, difference, interval
from phistill.train import EvalRow
from phistill.train.config import SAFE_KEYS
from phistill.train.curve import CurveEnd, curve_end
from phistill.train.sweeps.compare import half_interval

from .students import Curve, RunFacts

SETTLED = 2.0
"""Without equal seeds, a difference this many times what seeds make is called real."""

NO_CHOICES = SAFE_KEYS | {"seed"}
"""Fields by which runs of one setting may differ."""

SEED_IN_NAME = re.compile(r"[,_-]?seed[=_-]?\d+")
MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[RunFacts, ...]
    """Best first."""

    @cached_property
    def rows(self) -> tuple[EvalRow, ...]:
        """The evaluation by target, means over seeds; () where no run was evaluated."""
        return tuple(
            _over_seeds([row for row in rows if row is not None])
            for line in self.runs[0].trained
            for rows in [[run.row(line.teacher, line.kind) for run in self.runs]]
        )

    def row(self, teacher: str, kind: str) -> EvalRow | None:
        """Of one target; None where the setting did not learn it."""
        found = (row for row in self.rows if (row.teacher, row.kind) == (teacher, kind))
        return next(found, None)

    @property
    def mean(self) -> float:
        """Error over targets and seeds; what settings are ranked by."""
        return fmean(row.error for row in self.rows)

    @property
    def of_directions(self) -> float:
        """The same of directions alone: (1 - cosine) over (1 - cosine of the constant)."""
        return fmean(error_of_direction(row) for row in self.rows)

    @property
    def low(self) -> float:
        return mean_error(self.runs[0])

    @property
    def high(self) -> float:
        return mean_error(self.runs[-1])

    @property
    def middle(self) -> RunFacts:
        """The run that stands for the setting where one is drawn."""
        return self.runs[len(self.runs) // 2]

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Means over the seeds that logged the same steps as the middle one."""
        found = []
        for curve in self.middle.curves:
            same = [one for run in self.runs for one in run.curves if one.is_beside(curve)]
            checks = [one.checks for one in same]
            found.append(
                replace(
                    curve,
                    values=np.mean([one.values for one in same], axis=0),
                    checks=tuple(
                        (step, fmean(errors))
                        for step, errors in _by_step(checks).items()
                        if len(errors) == len(checks)
                    ),
                )
            )
        return tuple(found)

    @cached_property
    def end(self) -> CurveEnd | None:
        """Of the loss, a mean over the seeds that logged as much as the middle one."""
        num = len(self.middle.losses)
        logged = [run.losses for run in self.runs if len(run.losses) == num]
        return curve_end(list(np.mean(logged, axis=0)))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The mean of one setting minus that of another."""

    over_images: Interval | None
    """None where no image is common."""

    over_seeds: tuple[float, float] | None
    """95 % interval from equal seeds; None for fewer than two of them."""

    is_settled_by_seeds: bool | None
    """None where each has one seed alone."""

    is_separate: bool
    """Whether every seed of the one lies below every seed of the other."""

    @property
    def is_better(self) -> bool:
        """Whether images, and seeds where there are several, show that the one is lower."""
        shown = self.over_images is not None and self.over_images.is_negative
        return shown and self.is_settled_by_seeds is not False


def mean_error(run: RunFacts) -> float:
    """Of one seed, over teachers and kinds."""
    return fmean(line.error for line in run.trained)


def error_of_direction(row: EvalRow) -> float:
    """(1 - cosine) over (1 - cosine of the constant): what is wrong but for the length."""
    unit = 1 - row.constant_cosine
    return (1 - row.cosine) / unit if unit > 0 else math.nan


def settings_of(runs: Sequence[RunFacts]) -> list[Setting]:
    """Best first by mean error; those without an evaluation come last, in the order of ``runs``."""
    groups: list[list[RunFacts]] = []
    for run in sorted(runs, key=lambda run: mean_error(run) if run.trained else math.inf):
        alike = (group for group in groups if not differing(group[0], run))
        if (group := next(alike, None)) is None:
            groups.append([run])
        elif run.trained or not group[0].trained:
            group.append(run)
    names = [_common_name(group) for group in groups]
    found = [
        Setting(name=name if names.count(name) == 1 else _all_names(group), runs=tuple(group))
        for name, group in zip(names, groups, strict=True)
    ]
    return sorted(found, key=lambda one: one.mean if one.rows else math.inf)


def ranked(settings: Sequence[Setting]) -> list[Setting]:
    """Those that were evaluated."""
    return [one for one in settings if one.rows]


def ranks(settings: Sequence[Setting]) -> list[str]:
    """``1=``, ``1=``, ``3``, ...: equal are those that cannot be told from the first of theirs."""
    places: list[int] = []
    for number, one in enumerate(settings):
        first = places[-1] if places else number
        is_next = number != first and compared(settings[first], one).is_better
        places.append(number if is_next else first)
    return [f"{place + 1}{'=' if places.count(place) > 1 else ''}" for place in places]


def compared(one: Setting, other: Setting) -> Comparison:
    """``one`` minus ``other``."""
    first, second = ({run.student.config.seed: run for run in s.runs} for s in (one, other))
    pairs = [mean_error(first[s]) - mean_error(second[s]) for s in sorted(first.keys() & second)]
    half = half_interval(pairs)
    over_seeds = None if half is None else (fmean(pairs) - half, fmean(pairs) + half)
    settled: bool | None = None
    if over_seeds is not None:
        settled = over_seeds[1] < 0
    elif len(one.runs) > 1 or len(other.runs) > 1:
        spread = max(one.high - one.low, other.high - other.low)
        settled = other.mean - one.mean > SETTLED * spread
    return Comparison(
        over_images=apart(one, other),
        over_seeds=over_seeds,
        is_settled_by_seeds=settled,
        is_separate=one.high < other.low,
    )


def apart(one: Setting, other: Setting, *, teacher: str = "", kind: str = "") -> Interval | None:
    """Mean error of ``one`` minus ``other``, over the targets of both, or those of one teacher or
    kind.

    None where no image is common.
    """
    pairs = []
    for row in one.rows:
        if teacher not in ("", row.teacher) or kind not in ("", row.kind):
            continue
        against = other.row(row.teacher, row.kind)
        sides = row.columns, against.columns if against is not None else None
        if sides[0] is not None and sides[1] is not None and len(sides[0]) == len(sides[1]):
            pairs.append((sides[0], sides[1]))
    if not pairs or len({len(first) for first, _ in pairs}) > 1:
        return None
    left, right = (np.concatenate(columns, 1) for columns in zip(*pairs, strict=True))
    return difference(left, right, _mean_ratio)


def _over_seeds(rows: Sequence[EvalRow]) -> EvalRow:
    """One target's mean over seeds, its interval by the same images of all."""
    if not rows[1:]:
        return rows[0]
    columns = _mean_columns([row.columns for row in rows])
    found = None if columns is None else interval(columns)
    raw = [row.mse for row in rows if row.mse is not None]
    return replace(
        rows[0],
        mse=fmean(raw) if len(raw) == len(rows) else None,
        cosine=fmean(row.cosine for row in rows),
        error=fmean(row.error for row in rows),
        error_low=None if found is None else found.low,
        error_high=None if found is None else found.high,
        columns=columns,
        cosines=_mean_columns([row.cosines for row in rows]),
    )


def _mean_columns(
    columns: Sequence[Float[np.ndarray, "n 2"] | None],
) -> Float[np.ndarray, "n 2"] | None:
    """None unless all measured as many images."""
    known = [one for one in columns if one is not None]
    if len(known) < len(columns) or len({len(one) for one in known}) > 1:
        return None
    return np.asarray(np.mean(known, axis=0))


def _by_step(checks: Sequence[Sequence[tuple[int, float]]]) -> dict[int, list[float]]:
    steps: dict[int, list[float]] = {}
    for step, error in itertools.chain(*checks):
        steps.setdefault(step, []).append(error)
    return steps


def _mean_ratio(sums: Float[np.ndarray, "b 2t"]) -> Float[np.ndarray, " b"]:
    return np.asarray((sums[:, ::2] / sums[:, 1::2]).mean(1))


def differing(one: RunFacts, other: RunFacts) -> dict[str, tuple[Any, Any]]:
    """Settings that decide the weights and differ, seeds aside; another cache counts as one."""
    first, second = (choices(run) for run in (one, other))
    return {key: (first[key], second[key]) for key in first if first[key] != second[key]}


def choices(run: RunFacts) -> dict[str, Any]:
    """What decides the weights, seeds aside, by the config's keys."""
    chosen = {k: v for k, v in run.student.config.to_dict().items() if k not in NO_CHOICES}
    return {**chosen, "cache": [PurePath(one["path"]).name for one in run.student.facts["caches"]]}


def without_seed(name: str) -> str:
    """``phi-s`` of ``phi-s,seed=0``; a name that is nothing else stays."""
    return SEED_IN_NAME.sub("", name) or name


def _common_name(group: Sequence[RunFacts]) -> str:
    names = {without_seed(run.name) for run in group}
    return names.pop() if len(names) == 1 else _all_names(group)


def _all_names(group: Sequence[RunFacts]) -> str:
    names = [run.name for run in group]
    return " / ".join(names) if len(names) <= MAX_NAMES else f"{names[0]} … {names[-1]}"
