"""The four questions that a report is opened with, answered from the evaluations and the curves.

Is the student good? Which teacher is neglected? Is it still learning? What next? Runs are compared
on the same held-out images, by the mean over targets of their errors; two runs are contrasted only
where they differ in one setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from phistill.errors import counted
from phistill.stats.intervals import Interval

from .settings import Setting, apart, compared, differing, settings_of, without_seed
from .students import Diverged, RunFacts

NEGLECTED = 1.5
"""A target whose error is this many times the mean of the others is called neglected."""

OVERFITTED = 1.25
"""Error on held-out images over the loss that was learnt, both as shares of the constant's."""

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
    """Two settings that differ in one key."""

    setting: str
    better: Setting
    worse: Setting
    values: tuple[str, str]
    apart: Interval
    """Mean error over seeds of the better minus that of the worse, paired by image."""


def contrasts(runs: Sequence[RunFacts]) -> list[Contrast]:
    """Every pair of settings that differ in one key, seeds aside."""
    found = []
    for better, worse in itertools.combinations(settings_of(runs), 2):
        changed = differing(better.runs[0], worse.runs[0])
        changed.pop("seed", None)
        measured = apart(better.runs, worse.runs) if len(changed) == 1 else None
        if measured is None:
            continue
        ((setting, values),) = changed.items()
        found.append(
            Contrast(setting=setting, better=better, worse=worse, values=values, apart=measured)
        )
    return found


def difference_text(found: Interval) -> str:
    """``0.120 lower [0.100, 0.140]``, or the largest difference that is not excluded."""
    if found.low is None or found.high is None:
        return f"{abs(found.value):.3f} apart, too few images for an interval"
    if found.is_negative or found.is_positive:
        low, high = sorted((abs(found.low), abs(found.high)))
        way = "lower" if found.is_negative else "higher"
        return f"{abs(found.value):.3f} {way}, 95 % interval {low:.3f} to {high:.3f}"
    return f"no difference that images show: at most {found.largest:.3f} either way"


def answers(runs: Sequence[RunFacts], diverged: Sequence[Diverged] = ()) -> list[Answer]:
    """In the order in which they are asked; [] without an evaluated run. ``diverged`` are not among
    ``runs``. What is asked of one run is told of the middle seed of the best setting."""
    ranked = settings_of(runs)
    if not ranked:
        return []
    best = ranked[0].middle
    several = len(ranked) > 1 or len(ranked[0].runs) > 1
    lost = f"No: {runs_text(runs, diverged)} and cannot be compared. {_lost(diverged)}"
    return [
        Answer(question="Is the student good?", text=_good(ranked[0])),
        *([Answer(question="Which run is best?", text=_best(ranked))] if several else []),
        *([Answer(question="Did every run end?", text=lost)] if diverged else []),
        Answer(question="Which teacher is neglected?", text=_neglected(best)),
        Answer(question="Is it still learning?", text=_learning(best)),
        Answer(question="What next?", text=" ".join([*_more_seeds(ranked), *_advice(best)])),
    ]


def runs_text(runs: Sequence[RunFacts], diverged: Sequence[Diverged] = ()) -> str:
    """``39 runs of 13 settings, 3 of them diverged``."""
    evaluated = settings_of(runs)
    names = {one.name for one in evaluated} | {one.setting for one in diverged}
    names |= {without_seed(run.name) for run in runs if not run.evaluation}
    text = f"{counted(len(runs) + len(diverged), 'run')} of {counted(len(names), 'setting')}"
    return f"{text}, {len(diverged)} of them diverged" if diverged else text


def _lost(diverged: Sequence[Diverged]) -> str:
    """Each setting once, with what it sets and where its runs ended."""
    by_name: dict[str, list[Diverged]] = {}
    for one in diverged:
        by_name.setdefault(one.setting, []).append(one)
    told = [
        f"{name} ({group[0].changes}): "
        + ", ".join(f"{one.name} at step {one.step}" for one in group)
        for name, group in by_name.items()
    ]
    return f"{'; '.join(told)}."


def _good(best: Setting) -> str:
    error = best.mean
    words = "close to its teachers" if error < GOOD else "on its way" if error < FAIR else "poor"
    seeds = len(best.runs) if len(best.runs) > 1 else 0
    over = f"teachers, kinds and {seeds} seeds" if seeds else "teachers and kinds"
    text = (
        f"{'Setting' if seeds else 'Run'} {best.name if seeds else best.runs[0].name} is {words}: "
        f"on images it has not seen its error is {error:.2f} of the constant's, averaged over "
        f"{over} (0 is the teacher itself)."
    )
    lost = dict.fromkeys(
        f"{line.teacher} {line.kind}"
        for run in best.runs
        for line in run.evaluation
        if line.beats_constant is False
    )
    if lost:
        some = " for some seed" if seeds else ""
        text += f" No better than the constant{some} for {', '.join(lost)}."
    return text


def _best(ranked: Sequence[Setting]) -> str:
    """The best setting against the next: their means over seeds, on images and beside seeds."""
    best = ranked[0]
    if not ranked[1:]:
        lowest = best.runs[0].name
        return f"{_called(best)}: all are one setting; {lowest} is lowest, by its seed alone."
    second = ranked[1]
    text = f"{_called(best)}; the next setting is {_called(second)}."
    found = compared(best, second)
    if found.over_images is None:
        return f"{text} They were not measured on the same images."
    told = difference_text(found.over_images)
    if not found.over_images.is_negative:
        return f"{text} They are tied as far as images go: {told}."
    told = f"by mean, {told} over images"
    if found.is_settled_by_seeds is None:
        return (
            f"{text} The difference is real as far as images go ({told}), but one seed of each "
            "says nothing about other seeds."
        )
    if found.over_seeds is not None:
        low, high = sorted(-end for end in found.over_seeds)
        told += f", {low:.3f} to {high:.3f} over seeds".replace("-", "−")
    else:
        widest = max(best.high - best.low, second.high - second.low)
        told += f"; seeds of one setting lie up to {widest:.3f} apart"
    way = "Every" if found.is_separate else "Not every"
    seeds = f"{way} seed of {best.name} lies below every seed of {second.name}."
    if found.is_settled_by_seeds:
        return f"{text} The difference is real: {told}. {seeds}"
    return f"{text} {UNSETTLED}: {told}. {seeds}"


def _more_seeds(ranked: Sequence[Setting]) -> list[str]:
    """What would settle which of the two best settings is better, where that is open."""
    if not ranked[1:] or UNSETTLED not in _best(ranked):
        return []
    return [f"More seeds of {ranked[0].name} and {ranked[1].name}, if their order matters."]


def one_per_setting(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """What is drawn: all of a few runs; of more than MAX_DRAWN the one in the middle of each
    setting's seeds, in the order of ``runs``."""
    if len(runs) <= MAX_DRAWN:
        return list(runs)
    middle = {one.middle.name for one in settings_of(runs)}
    return [run for run in runs if run.name in middle]


def _called(one: Setting) -> str:
    """``phi-s with 0.414`` or ``phi-s with a mean of 0.420 over 3 seeds (0.414 to 0.431)``."""
    if not one.runs[1:]:
        return f"{one.name} with {one.mean:.3f}"
    seeds = f"{len(one.runs)} seeds ({one.low:.3f} to {one.high:.3f})"
    return f"{one.name} with a mean of {one.mean:.3f} over {seeds}"


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
