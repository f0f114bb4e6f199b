"""The four questions that a report is opened with, answered from the evaluations and the curves.

Is the student good? Which teacher is neglected? Is it still learning? What next? Runs are compared
on the same held-out images, by the mean over targets of their errors; two runs are contrasted only
where they differ in one setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from phistill.stats.intervals import Interval, difference
from phistill.train.config import SAFE_KEYS

from .students import RunFacts

NEGLECTED = 1.5
"""A target whose error is this many times the mean of the others is called neglected."""

OVERFITTED = 1.25
"""Error on held-out images over the loss that was learnt, both as shares of the constant's."""

SETTLED = 2.0
"""A difference this many times what seeds make is called real."""

UNSETTLED = "It is not settled"

MAX_DRAWN = 12
"""Runs that are drawn beside one another whatever their settings."""

GOOD, FAIR = 0.25, 0.6
"""Mean errors below which a student is called close to its teachers, or on its way."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question and what the numbers say."""

    question: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two runs that differ in one setting."""

    setting: str
    better: RunFacts
    worse: RunFacts
    values: tuple[str, str]
    apart: Interval
    """Mean error of the better minus that of the worse, paired by image."""


def mean_error(run: RunFacts) -> float:
    """Over teachers and kinds; what runs are ranked by."""
    return fmean(line.error for line in run.evaluation)


def by_error(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The evaluated runs, best first."""
    return sorted((run for run in runs if run.evaluation), key=mean_error)


def apart(one: RunFacts, other: RunFacts) -> Interval | None:
    """Mean error of ``one`` minus ``other`` over the targets of both; None where no image is."""
    pairs = [
        (line.columns, same.columns)
        for line in one.evaluation
        if (same := other.row(line.teacher, line.kind)) is not None
        and line.columns is not None
        and same.columns is not None
        and len(line.columns) == len(same.columns)
    ]
    if not pairs or len({len(first) for first, _ in pairs}) > 1:
        return None
    left, right = (np.concatenate(columns, 1) for columns in zip(*pairs, strict=True))
    return difference(left, right, _mean_ratio)


def _mean_ratio(sums: Float[np.ndarray, "b 2t"]) -> Float[np.ndarray, " b"]:
    return np.asarray((sums[:, ::2] / sums[:, 1::2]).mean(1))


def contrasts(runs: Sequence[RunFacts]) -> list[Contrast]:
    """Every pair of evaluated runs that differ in one setting, seeds aside."""
    found = []
    for better, worse in itertools.combinations(by_error(runs), 2):
        changed = differing(better, worse)
        measured = apart(better, worse) if len(changed) == 1 else None
        if measured is None:
            continue
        ((setting, values),) = changed.items()
        found.append(
            Contrast(setting=setting, better=better, worse=worse, values=values, apart=measured)
        )
    return found


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


def difference_text(found: Interval) -> str:
    """``0.120 lower [0.100, 0.140]``, or the largest difference that is not excluded."""
    if found.low is None or found.high is None:
        return f"{abs(found.value):.3f} apart, too few images for an interval"
    if found.is_negative or found.is_positive:
        low, high = sorted((abs(found.low), abs(found.high)))
        way = "lower" if found.is_negative else "higher"
        return f"{abs(found.value):.3f} {way}, 95 % interval {low:.3f} to {high:.3f}"
    return f"no difference that images show: at most {found.largest:.3f} either way"


def answers(runs: Sequence[RunFacts], diverged: Sequence[str] = ()) -> list[Answer]:
    """In the order in which they are asked; [] without an evaluated run. ``diverged`` are the names
    of runs that are not among ``runs``."""
    ranked = by_error(runs)
    if not ranked:
        return []
    best = ranked[0]
    return [
        Answer(question="Is the student good?", text=_good(best)),
        *([Answer(question="Which run is best?", text=_best(ranked))] if ranked[1:] else []),
        *([Answer(question="Did every run end?", text=_lost(diverged))] if diverged else []),
        Answer(question="Which teacher is neglected?", text=_neglected(best)),
        Answer(question="Is it still learning?", text=_learning(best)),
        Answer(question="What next?", text=" ".join([*_more_seeds(ranked), *_advice(best)])),
    ]


def _good(run: RunFacts) -> str:
    error = mean_error(run)
    words = "close to its teachers" if error < GOOD else "on its way" if error < FAIR else "poor"
    text = (
        f"Run {run.name} is {words}: on images it has not seen its error is {error:.2f} of the "
        "constant's, averaged over teachers and kinds (0 is the teacher itself)."
    )
    lost = [f"{one.teacher} {one.kind}" for one in run.evaluation if one.beats_constant is False]
    if lost:
        text += f" No better than the constant for {', '.join(lost)}."
    return text


def by_setting(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Runs that differ by their seed alone together, each best first; by the mean of their errors,
    best first."""
    groups: list[list[RunFacts]] = []
    for run in by_error(runs):
        for group in groups:
            if not set(differing(group[0], run)) - {"seed"}:
                group.append(run)
                break
        else:
            groups.append([run])
    return sorted(groups, key=lambda group: fmean(map(mean_error, group)))


def _best(ranked: Sequence[RunFacts]) -> str:
    """The best setting against the next, on images and beside what a seed makes."""
    groups = by_setting(ranked)
    # Of the two that are compared: seeds of a setting that fails may lie far apart.
    spreads = [mean_error(group[-1]) - mean_error(group[0]) for group in groups[:2] if group[1:]]
    seeds = f"seeds of one setting lie up to {max(spreads, default=0):.3f} apart"
    if not groups[1:]:
        return f"{ranked[0].name}, by its seed: all are one setting, and {seeds}."
    best, second = groups[0][0], groups[1][0]
    text = f"{_called(groups[0])}; the next setting is {_called(groups[1])}."
    measured = apart(best, second)
    if measured is None:
        return f"{text} They were not measured on the same images."
    told = difference_text(measured)
    if not measured.is_negative:
        return f"{text} They are tied as far as images go: {told}."
    if not spreads:
        return (
            f"{text} The difference is real as far as images go ({told}), but one seed of each "
            "says nothing about other seeds."
        )
    if abs(measured.value) > SETTLED * max(spreads):
        return f"{text} The difference is real: {told}, and {seeds}."
    return f"{text} {UNSETTLED}: images show it ({told}), but {seeds}."


def _more_seeds(ranked: Sequence[RunFacts]) -> list[str]:
    """What would settle which of the two best settings is better, where that is open."""
    groups = by_setting(ranked)
    if not groups[1:] or UNSETTLED not in _best(ranked):
        return []
    return [f"More seeds of {groups[0][0].name} and {groups[1][0].name}, if their order matters."]


def one_per_setting(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """What is drawn: all of a few runs; of more than MAX_DRAWN the one in the middle of each
    setting's seeds, in the order of ``runs``."""
    if len(runs) <= MAX_DRAWN:
        return list(runs)
    middle = {group[len(group) // 2].name for group in by_setting(runs)}
    return [run for run in runs if run.name in middle]


def _lost(diverged: Sequence[str]) -> str:
    return f"No: {', '.join(diverged)} diverged and cannot be compared. The others ended."


def _called(group: Sequence[RunFacts]) -> str:
    """``phi-s-0 with 0.414`` or ``phi-s-0, 3 seeds, with 0.420 on average``."""
    mean = fmean(map(mean_error, group))
    if not group[1:]:
        return f"{group[0].name} with {mean:.3f}"
    return f"{group[0].name}, {len(group)} seeds, with {mean:.3f} on average"


def _neglected(run: RunFacts) -> str:
    lines = sorted(run.evaluation, key=lambda line: -line.error)
    worst, others = lines[0], lines[1:]
    text = f"{worst.teacher} ({worst.kind}) is worst in run {run.name}, with {worst.error:.2f}"
    if not others:
        return f"{text}; it is the only one."
    rest = fmean(line.error for line in others)
    if worst.error > NEGLECTED * rest:
        return f"{text}: {worst.error / rest:.1f} times the {rest:.2f} of the others."
    return f"None much: {text}, the others {rest:.2f} on average."


def _learning(run: RunFacts) -> str:
    if run.end is None:
        return f"Run {run.name} logged too few steps to say."
    return f"Run {run.name}: {run.end}"


def _advice(run: RunFacts) -> list[str]:
    """The first things to try, the likeliest first."""
    lines, config = run.evaluation, run.student.config
    advice = []
    if any(line.beats_constant is False for line in lines):
        advice.append("Before all else, a student that loses to the constant: try a lower lr.")
    if run.end is not None and run.end.is_falling:
        advice.append(f"Train longer: twice the {run.student.facts['num_steps']:,} steps.")
    worst = max(lines, key=lambda line: line.error)
    others = [line.error for line in lines if line is not worst]
    if others and worst.error > NEGLECTED * fmean(others):
        if config.normalizer == "none":
            advice.append("Take a normalizer: phi-s puts all teachers on one scale.")
        elif config.balance == "equal":
            weights = f"weights={{{worst.teacher} = 2}}"
            advice.append(f"Give {worst.teacher} more weight: balance=fixed, {weights}.")
    if gap := overfitted(run):
        advice.append(
            f"More images, or augmentation: {gap} is learnt much better than it is predicted on "
            "images not seen."
        )
    if not advice:
        advice.append("A larger student, or a larger input: nothing else stands out.")
    return advice


def overfitted(run: RunFacts) -> str:
    """The target whose held-out error exceeds what was learnt by most, where it is much."""
    gaps = {}
    for curve in run.curves:
        teacher, _, kind = curve.target.rpartition("/")
        line = run.row(teacher, kind)
        if curve.relative and line is not None and len(curve.values):
            tail = float(np.mean(curve.values[-max(1, len(curve.values) // 10) :]))
            gaps[f"{teacher} {kind}"] = line.error / tail if tail > 0 else 1.0
    worst = max(gaps, key=lambda name: gaps[name], default="")
    return worst if worst and gaps[worst] > OVERFITTED else ""
