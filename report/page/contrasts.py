"""In what settings differ, in words, and what one choice alone does.

Settings are all compared with the best, whatever else differs; where several things do, the
difference is that of all of them together. What one choice does alone is told by settings that
agree in every other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from phistill.stats.intervals import Interval

from .settings import Comparison, Setting, apart, choices, compared, differing, ranked
from .wording import PERCENT, in_words, value_text, word_of


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Settings that differ in one key alone."""

    key: str
    rest: str
    """The values of the other keys that vary in the report, in words."""

    settings: tuple[Setting, ...]
    """Best first."""

    values: tuple[str, ...]
    """Of the key, by setting."""


def varying(settings: Sequence[Setting]) -> list[str]:
    """The keys in which any two settings differ, in the order of the config."""
    found = [choices(one.runs[0]) for one in settings]
    return [
        key for key in (found[0] if found else ()) if any(o[key] != found[0][key] for o in found)
    ]


def contrasts(settings: Sequence[Setting]) -> list[Contrast]:
    """For each key that varies: the settings, two or more, that agree in all others."""
    evaluated = ranked(settings)
    keys, found = varying(evaluated), []
    for key in keys:
        groups: dict[str, list[Setting]] = {}
        for one in evaluated:
            others = {k: v for k, v in choices(one.runs[0]).items() if k in keys and k != key}
            groups.setdefault(json.dumps(others, sort_keys=True), []).append(one)
        found += [
            Contrast(
                key=word_of(key),
                rest=in_words(
                    {k: v for k, v in choices(group[0].runs[0]).items() if k in keys and k != key}
                ),
                settings=tuple(group),
                values=tuple(value_text(choices(one.runs[0])[key]) for one in group),
            )
            for group in groups.values()
            if len(group) > 1
        ]
    return found


def own_words(one: Setting, best: Setting) -> str:
    """``normalizer global, balance equal``: what ``one`` has where the best has something else."""
    return in_words({key: mine for key, (mine, _) in differing(one.runs[0], best.runs[0]).items()})


def apart_words(one: Setting, other: Setting) -> str:
    """``They differ in the lr (0.1 and 0.2).``, or that several things were changed at once."""
    changed = differing(one.runs[0], other.runs[0])
    told = " and ".join(
        f"{word_of(key)} ({value_text(mine)} against {value_text(theirs)})"
        for key, (mine, theirs) in changed.items()
    )
    if len(changed) == 1:
        return f"They differ in {told} alone."
    together = "both" if len(changed) == 2 else f"all {len(changed)}"
    return f"They differ in {told}: the difference is that of {together} together."


def traded_text(one: Setting, other: Setting) -> str:
    """`` It is better on a (0.1 for 0.2) and worse on b (0.4 for 0.3): a trade.``, as far as images
    show; "" where nothing is worse."""
    better, worse = [], []
    for row in one.rows:
        against = other.row(row.teacher, row.kind)
        found = apart(one, other, teacher=row.teacher, kind=row.kind)
        if against is None or found is None:
            continue
        told = f"{row.teacher} {row.kind} ({row.error:.3f} for {against.error:.3f})"
        better += [told] if found.is_negative else []
        worse += [told] if found.is_positive else []
    if not worse:
        return ""
    won = f"better on {', '.join(better)} and " if better else ""
    return f" By images it is {won}worse on {', '.join(worse)}: the mean hides a trade."


def difference_text(found: Interval) -> str:
    """``0.120 lower, 95 % interval 0.100 to 0.140``, or the most that is not excluded."""
    if found.low is None or found.high is None:
        return f"{abs(found.value):.3f} apart, too few images for an interval"
    if found.is_negative or found.is_positive:
        low, high = sorted((abs(found.low), abs(found.high)))
        way = "lower" if found.is_negative else "higher"
        return f"{abs(found.value):.3f} {way}, 95{PERCENT} interval {low:.3f} to {high:.3f}"
    return f"no difference that images show: at most {found.largest:.3f} either way"


def behind_text(one: Setting, first: Setting) -> str:
    """By how much ``one`` lies behind ``first``, and whether seeds leave that open."""
    found = compared(first, one)
    if found.over_images is None:
        return "not measured on the same images"
    told = difference_text(_turned(found.over_images))
    if found.over_images.is_negative and found.is_settled_by_seeds is False:
        over = over_seeds_text(found)
        return f"{told}; seeds leave it open{f', {over}' if over else ''}"
    return told


def over_seeds_text(found: Comparison) -> str:
    """``−0.002 to 0.026``: the interval over seeds of what the first lies ahead; "" without."""
    if found.over_seeds is None:
        return ""
    low, high = sorted(-end for end in found.over_seeds)
    return f"{low:.3f} to {high:.3f}".replace("-", "−")


def _turned(found: Interval) -> Interval:
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return Interval(value=-found.value, low=low, high=high, num_images=found.num_images)
