"""The questions that a report is opened with, answered from the evaluations and the curves.

Is the student good? Which run is best? Which teacher is neglected? Is it still learning? What next?
Settings are compared on the same held-out images, by the mean over targets and seeds of their
errors; what is asked of one is told of the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from phistill.errors import counted

from .contrasts import apart_words, difference_text, over_seeds_text, traded_text
from .settings import Setting, apart, compared, ranked
from .students import RELATIVE, Diverged
from .wording import PERCENT, direction_text, in_words

LAGGING = 1.5
"""A teacher whose error is this many times that of the one learnt best is said to lag."""

BEATEN = 0.9
"""One that another setting learns with less than this share of the error is neglected."""

OVERFITTED = 1.25
"""Error on held-out images over the loss that was learnt, both as shares of the constant's."""

UNSETTLED = "Seeds leave it open"

GOOD, FAIR = 0.25, 0.6
"""Mean errors below which a student is called close to its teachers, or on its way."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question and what the numbers say."""

    question: str
    text: str


def answers(settings: Sequence[Setting], diverged: Sequence[Diverged] = ()) -> list[Answer]:
    """In the order in which they are asked; [] without an evaluated run. ``settings`` come best
    first, ``diverged`` are not among their runs."""
    found = ranked(settings)
    if not found:
        return []
    best = found[0]
    several = len(found) > 1 or len(best.runs) > 1
    return [
        Answer(question="Is the student good?", text=_good(best)),
        *([Answer(question="Which run is best?", text=_best(found))] if several else []),
        *_ended(settings, found, diverged),
        Answer(question="Which teacher is neglected?", text=_neglected(found)),
        Answer(question="Is it still learning?", text=_learning(best)),
        Answer(question="What next?", text=" ".join([*_more_seeds(found), *_advice(found)])),
    ]


def _ended(
    settings: Sequence[Setting], found: Sequence[Setting], diverged: Sequence[Diverged]
) -> list[Answer]:
    """What diverged, and which settings ended without beating the constant."""
    text = []
    if diverged:
        text += [f"No: {runs_text(settings, diverged)} and cannot be compared. {_lost(diverged)}"]
    beaten = {one.name: not_learnt(one) for one in found[1:] if not_learnt(one)}
    if beaten:
        named = "; ".join(f"{name} ({', '.join(rows)})" for name, rows in beaten.items())
        text += [
            f"{'These' if diverged else 'Yes, but these'} end no better than the constant "
            f"somewhere: {named}. Where that of the direction is well below 1, lengths are wrong."
        ]
    return [Answer(question="Did every run end well?", text=" ".join(text))] if text else []


def not_learnt(one: Setting) -> list[str]:
    """``clip patches (in direction alone 0.28)``: where a setting is no better than the
    constant."""
    return [
        f"{row.teacher} {row.kind}" + (f" ({direction_text(row)})" if row.mse is not None else "")
        for row in one.rows
        if row.beats_constant is False
    ]


def runs_text(settings: Sequence[Setting], diverged: Sequence[Diverged] = ()) -> str:
    """``39 runs of 13 settings, 3 runs diverged``."""
    num = sum(len(one.runs) for one in settings) + len(diverged)
    names = {one.name for one in settings} | {one.setting for one in diverged}
    text = f"{counted(num, 'run')} of {counted(len(names), 'setting')}"
    return f"{text}, {counted(len(diverged), 'run')} diverged" if diverged else text


def _lost(diverged: Sequence[Diverged]) -> str:
    """Each setting once, with what it sets and where its runs ended."""
    by_name: dict[str, list[Diverged]] = {}
    for one in diverged:
        by_name.setdefault(one.setting, []).append(one)
    told = [
        f"{name} ({in_words(group[0].changes)}): "
        + ", ".join(f"{one.name} at step {one.step}" for one in group)
        for name, group in by_name.items()
    ]
    return f"{'; '.join(told)}."


def _good(best: Setting) -> str:
    error = best.mean
    words = "close to its teachers" if error < GOOD else "on its way" if error < FAIR else "poor"
    seeds = len(best.runs) if len(best.runs) > 1 else 0
    targets = counted(len(best.rows), "target")
    over = f"a mean over {targets}, each as much" if best.rows[1:] else "of one target"
    text = (
        f"{'Setting' if seeds else 'Run'} {best.name} is {words}: on images it has not seen its "
        f"error is {error:.2f} of the constant's, which always says the mean of the training "
        f"images; {over}{f', and {seeds} seeds' if seeds else ''} (0 is the teacher itself)."
    )
    lost = not_learnt(best)
    return f"{text} No better than the constant for {', '.join(lost)}." if lost else text


def _best(settings: Sequence[Setting]) -> str:
    """The best setting against the next: their means over seeds, on images and beside seeds."""
    best = settings[0]
    if not settings[1:]:
        lowest = best.runs[0].name
        return f"{_called(best)}: all are one setting; {lowest} is lowest, by its seed alone."
    second = settings[1]
    text = f"{_called(best)}; the next setting is {_called(second)}. {apart_words(best, second)}"
    text += traded_text(best, second)
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
        told += f", {over_seeds_text(found)} over seeds"
    else:
        widest = max(best.high - best.low, second.high - second.low)
        told += f"; seeds of one setting lie up to {widest:.3f} apart"
    way = "Every" if found.is_separate else "Not every"
    seeds = f"{way} seed of {best.name} lies below every seed of {second.name}."
    if found.is_settled_by_seeds:
        return f"{text} The difference is real: {told}. {seeds}"
    return f"{text} {UNSETTLED}, though images do not: {told}. {seeds}"


def _more_seeds(settings: Sequence[Setting]) -> list[str]:
    """What would settle which of the two best settings is better, where that is open."""
    if not settings[1:] or UNSETTLED not in _best(settings):
        return []
    return [f"More seeds of {settings[0].name} and {settings[1].name}, if their order matters."]


def _called(one: Setting) -> str:
    """``phi-s with 0.414`` or ``phi-s with a mean of 0.420 over 3 seeds (0.414 to 0.431)``."""
    if not one.runs[1:]:
        return f"{one.name} with {one.mean:.3f}"
    seeds = f"{len(one.runs)} seeds ({one.low:.3f} to {one.high:.3f})"
    return f"{one.name} with a mean of {one.mean:.3f} over {seeds}"


def by_teacher(one: Setting) -> dict[str, float]:
    """The mean error over kinds of each teacher, the worst first."""
    names = dict.fromkeys(row.teacher for row in one.rows)
    errors = {name: fmean(row.error for row in one.rows if row.teacher == name) for name in names}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def lagging(errors: Mapping[str, float]) -> list[str]:
    """The teachers that are learnt much less than the one learnt best, the worst first."""
    return [name for name, error in errors.items() if error > LAGGING * min(errors.values())]


def neglected(settings: Sequence[Setting]) -> dict[str, tuple[Setting, float]]:
    """The teachers that some setting learns much better than the best one does, by images too, with
    that setting and its error."""
    best = settings[0]
    found: dict[str, tuple[Setting, float]] = {}
    for teacher, error in by_teacher(best).items():
        for other in settings[1:]:
            reached = by_teacher(other).get(teacher, np.inf)
            least = found[teacher][1] if teacher in found else BEATEN * error
            measured = apart(other, best, teacher=teacher)
            if reached < least and measured is not None and measured.is_negative:
                found[teacher] = other, reached
    return found


def _neglected(settings: Sequence[Setting]) -> str:
    best = settings[0]
    errors = by_teacher(best)
    told = "; ".join(_teacher_text(best, name, error) for name, error in errors.items())
    text = f"Error by teacher in {best.name}, the worst first: {told}."
    if len(errors) == 1:
        return f"{text} It is the only one."
    behind, (*_, least) = lagging(errors), errors
    if behind:
        ratios = " and ".join(f"{errors[name] / errors[least]:.1f}" for name in behind)
        text += f" {' and '.join(behind)}: {ratios} times the error of {least}."
    else:
        text += f" All are within {LAGGING:g} times the error of {least}."
    beaten = neglected(settings)
    if beaten:
        ways = [f"{name} ({one.name} has {error:.2f})" for name, (one, error) in beaten.items()]
        return f"{text} Neglected, for another setting learns it much better: {', '.join(ways)}."
    if not behind:
        return f"None much. {text}"
    if not settings[1:]:
        return f"{text} Whether neglected or harder to learn, one setting alone does not tell."
    return (
        f"{text} No setting learns one of them much better: harder to learn, as far as these "
        "settings tell, rather than neglected."
    )


def _teacher_text(one: Setting, teacher: str, error: float) -> str:
    """``clip 0.35 (patches 0.35, summary 0.36)``."""
    kinds = [f"{row.kind} {row.error:.2f}" for row in one.rows if row.teacher == teacher]
    return f"{teacher} {error:.2f} ({', '.join(kinds)})"


def _learning(best: Setting) -> str:
    name = f"{best.name}{f', mean of {len(best.runs)} seeds' if best.runs[1:] else ''}"
    text = (
        f"{name}: {best.end}".replace(" %", PERCENT)
        if best.end
        else f"{name}: too few steps were logged to say."
    )
    checks: dict[int, list[float]] = {}
    for curve in best.curves:
        for step, error in curve.checks:
            checks.setdefault(step, []).append(error)
    if len(checks) < 2:
        return text
    last = max(checks)
    half = min(checks, key=lambda step: abs(step - last / 2))
    return (
        f"{text} On images it has not seen the error went from {fmean(checks[half]):.3f} at step "
        f"{half:,} to {fmean(checks[last]):.3f} at step {last:,}."
    )


def _advice(settings: Sequence[Setting]) -> list[str]:
    """The first things to try, the likeliest first."""
    best = settings[0]
    config, advice = best.middle.student.config, []
    if any(row.beats_constant is False for row in best.rows):
        advice.append("No better than the constant somewhere: more steps, or a lower lr.")
    if best.end is not None and best.end.is_falling:
        num_steps = best.middle.student.facts["num_steps"]
        advice.append(f"Train longer: twice the {num_steps:,} steps.")
    elif best.end is None or not best.end.is_flat:
        advice.append("Twice the steps, or a smaller log_every, to see whether it still learns.")
    beaten, behind = neglected(settings), lagging(by_teacher(best))
    starved = next(iter(beaten), behind[0] if behind and not settings[1:] else "")
    if starved and config.normalizer == "none":
        advice.append("Take a normalizer: phi-s puts all teachers on one scale.")
    elif starved and config.balance == "equal":
        weights = f"weights={{{starved} = 2}}"
        advice.append(f"Give {starved} more weight: balance=fixed, {weights}.")
    if gap := overfitted(best):
        advice.append(
            f"More images, or augmentation: {gap} is learnt much better than it is predicted on "
            "images not seen."
        )
    if not advice:
        advice.append("A larger student, or a larger input: nothing else stands out.")
    return advice


def overfitted(one: Setting) -> str:
    """The target whose held-out error exceeds what was learnt by most, where it is much."""
    gaps = {}
    for curve in one.curves:
        teacher, _, kind = curve.target.rpartition("/")
        row = one.row(teacher, kind)
        if curve.unit == RELATIVE and row is not None and len(curve.values):
            tail = float(np.mean(curve.values[-max(1, len(curve.values) // 10) :]))
            gaps[f"{teacher} {kind}"] = row.error / tail if tail > 0 else 1.0
    worst = max(gaps, key=lambda name: gaps[name], default="")
    return worst if worst and gaps[worst] > OVERFITTED else ""
