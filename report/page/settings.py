"""Settings of several seeds: what they are called, how they rank, and what tells them apart.

A setting's error is the mean over its seeds of the mean over targets. Two settings are compared by
the difference of these means: over images, by paired bootstrap of the errors averaged over seeds,
and over seeds, by Student's t on the differences of equal seeds, as a sweep's own table does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from phistill.stats.intervals import Interval, difference
from phistill.train import EvalRow
from phistill.train.config import SAFE_KEYS
from phistill.train.sweeps.compare import half_interval

from .students import RunFacts

SETTLED = 2.0
"""Without equal seeds, a difference this many times what seeds make is called real."""

SEED_IN_NAME = re.compile(r"[,_-]?seed[=_-]?\d+")
MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ by their seed alone."""

    name: str
    runs: tuple[RunFacts, ...]
    """Best first."""

    @property
    def mean(self) -> float:
        return fmean(map(mean_error, self.runs))

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
    """Over teachers and kinds; what runs are ranked by."""
    return fmean(line.error for line in run.evaluation)


def by_error(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The evaluated runs, best first."""
    return sorted((run for run in runs if run.evaluation), key=mean_error)


def settings_of(runs: Sequence[RunFacts]) -> list[Setting]:
    """Of the evaluated runs, by mean error, best first."""
    groups: list[list[RunFacts]] = []
    for run in by_error(runs):
        for group in groups:
            if not set(differing(group[0], run)) - {"seed"}:
                group.append(run)
                break
        else:
            groups.append([run])
    names = [_common_name(group) for group in groups]
    found = [
        Setting(name=name if names.count(name) == 1 else _all_names(group), runs=tuple(group))
        for name, group in zip(names, groups, strict=True)
    ]
    return sorted(found, key=lambda one: one.mean)


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
        over_images=apart(one.runs, other.runs),
        over_seeds=over_seeds,
        is_settled_by_seeds=settled,
        is_separate=one.high < other.low,
    )


def apart(one: Sequence[RunFacts], other: Sequence[RunFacts]) -> Interval | None:
    """Mean error of ``one`` minus ``other``, over seeds and the targets of all; None where no image
    is common."""
    pairs = []
    for line in one[0].evaluation:
        sides = [_over_seeds(runs, line) for runs in (one, other)]
        if sides[0] is not None and sides[1] is not None and len(sides[0]) == len(sides[1]):
            pairs.append((sides[0], sides[1]))
    if not pairs or len({len(first) for first, _ in pairs}) > 1:
        return None
    left, right = (np.concatenate(columns, 1) for columns in zip(*pairs, strict=True))
    return difference(left, right, _mean_ratio)


def _over_seeds(runs: Sequence[RunFacts], target: EvalRow) -> Float[np.ndarray, "n 2"] | None:
    """The sums of one target, a mean over runs; None unless all measured as many images."""
    rows = [run.row(target.teacher, target.kind) for run in runs]
    columns = [row.columns for row in rows if row is not None and row.columns is not None]
    if len(columns) < len(runs) or len({len(one) for one in columns}) > 1:
        return None
    return np.mean(columns, axis=0)


def _mean_ratio(sums: Float[np.ndarray, "b 2t"]) -> Float[np.ndarray, " b"]:
    return np.asarray((sums[:, ::2] / sums[:, 1::2]).mean(1))


def differing(one: RunFacts, other: RunFacts) -> dict[str, tuple[str, str]]:
    """Settings that decide the weights and differ; another cache counts as one."""
    first, second = one.student.config.to_dict(), other.student.config.to_dict()
    changed: dict[str, tuple[str, str]] = {
        key: (str(first[key]), str(second[key]))
        for key in first
        if key not in SAFE_KEYS and first[key] != second[key]
    }
    caches = [_cache_names(run.student.facts) for run in (one, other)]
    if caches[0] != caches[1]:
        changed["cache"] = caches[0], caches[1]
    return changed


def _cache_names(facts: Mapping[str, Any]) -> str:
    return ", ".join(PurePath(one["path"]).name for one in facts["caches"])


def without_seed(name: str) -> str:
    """``phi-s`` of ``phi-s,seed=0``; a name that is nothing else stays."""
    return SEED_IN_NAME.sub("", name) or name


def _common_name(group: Sequence[RunFacts]) -> str:
    names = {without_seed(run.name) for run in group}
    return names.pop() if len(names) == 1 else _all_names(group)


def _all_names(group: Sequence[RunFacts]) -> str:
    names = [run.name for run in group]
    return " / ".join(names) if len(names) <= MAX_NAMES else f"{names[0]} … {names[-1]}"
