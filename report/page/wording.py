"""From gathered numbers to the words, bars and cells of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phistill.train import EvalRow

from .answers import Contrast, difference_text
from .gather import AFTER, BEFORE, PATCHES, CacheFacts, share_extremes
from .settings import Setting, by_error, compared, ranks
from .students import RunFacts

READABLE_SHARE = 0.22
"""A part of a bar narrower than this has no room for its name; it is named below the bar."""

SUMMARY = "summary"
DASH = "–"
PERCENT = "\u00a0%"
"""With a space at which no line breaks."""

METHOD_WORDS = {
    "none": "the features as they are",
    "global": "one mean and one standard deviation for all channels",
    "standardize": "a mean and a standard deviation per channel",
    "isotropic": "a mean per channel and the one scale phi",
    "phi-s": "a mean per channel, the one scale phi, and a rotation that evens out the channels",
    "pca": "whitening in principal components",
    "zca": "whitening, turned back to the original axes",
    "hca": "whitening, then the rotation",
}
"""What each of stats.METHODS does, for a reader."""


@dataclass(frozen=True, kw_only=True)
class BarPart:
    """One teacher's part of a bar; ``text`` is empty where there is no room for it."""

    teacher: str
    number: int
    share: float
    text: str

    @property
    def flex(self) -> str:
        """The share as CSS reads it."""
        return f"{self.share:.8f}"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One normalizer's bar."""

    label: str
    parts: tuple[BarPart, ...]

    @property
    def thin(self) -> tuple[BarPart, ...]:
        """The parts without room for their text."""
        return tuple(part for part in self.parts if not part.text)

    @property
    def text(self) -> str:
        """The whole bar in words."""
        return ", ".join(f"{part.teacher} {percent_text(part.share)}" for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class EvalLine:
    """One line of the evaluation table, as text."""

    teacher: str
    kind: str
    run: str
    untrained: bool
    first: bool
    best: bool
    loses: bool
    """To the constant."""
    mse: str
    error: str
    cosine: str
    constant: str
    """The constant's cosine."""


@dataclass(frozen=True, kw_only=True)
class ErrorBar:
    """One run's error; lengths are percentages of the width."""

    run: str
    text: str
    width: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ErrorGroup:
    """The bars of one teacher and kind."""

    teacher: str
    kind: str
    one: float
    """Where the constant lies."""
    bars: tuple[ErrorBar, ...]


def number_text(value: float) -> str:
    """Three digits, trailing zeros kept: 0.00120, 12.0, 1,230, 1.20e−07."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        text = f"{value:.0f}"
    elif not 1e-4 <= abs(value) < 1e6:
        text = f"{value:.2e}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def percent_text(share: float) -> str:
    """A share as a percentage that is never rounded to all or to nothing."""
    percent = 100 * float(share)
    if percent in (0.0, 100.0):
        return f"{percent:.0f}{PERCENT}"
    # Digits enough to show how far it is from the nearer end.
    away = min(percent, 100 - percent)
    digits = max(1, math.ceil(-math.log10(away)) + 1) if away < 1 else 1
    return f"{percent:.{min(digits, 9)}f}{PERCENT}"


def times_text(ratio: float) -> str:
    """A ratio with two or three digits: 1.4, 37, 21,000."""
    if ratio < 9.95:
        return f"{ratio:.1f}"
    digits = max(0, math.floor(math.log10(ratio)) - 1)
    return f"{round(ratio, -digits):,.0f}"


def method_label(method: str) -> str:
    """A normalizer's name as a reader knows it."""
    return {BEFORE: "none (raw)", AFTER: "PHI-S"}.get(method, method)


def finding_text(cache: CacheFacts) -> str:
    """One sentence: which teacher would own an unweighted raw loss, and by how much."""
    finding = share_extremes(cache.shares[BEFORE])
    if finding is None:
        return f"One teacher, {cache.teachers[0]}: there is nothing to balance yet."
    even = percent_text(1 / len(cache.teachers))
    return (
        f"In an unweighted sum of raw patch MSEs, {finding.largest} would hold "
        f"{percent_text(finding.largest_share)} of the loss, {times_text(finding.ratio)} times "
        f"the share of {finding.smallest} ({percent_text(finding.smallest_share)}). "
        f"After PHI-S each of the {len(cache.teachers)} teachers holds {even}."
    )


def made_with_text(runs: Sequence[RunFacts]) -> str:
    """The versions the runs were trained with, each combination once."""
    versions = dict.fromkeys(
        f"phistill {facts['phistill']}, torch {facts['torch']}, timm {facts['timm']}"
        for facts in (run.student.facts for run in runs)
    )
    return f"Trained with {'; '.join(versions)}." if versions else ""


def share_bars(cache: CacheFacts) -> list[Bar]:
    """A bar per normalizer, the raw features first; those that look the same
    share one."""
    methods = sorted(cache.methods, key=lambda method: (method != BEFORE, method == AFTER))
    groups: dict[tuple[float, ...], list[str]] = {}
    for method in methods:
        alike = tuple(round(share, 2) for share in cache.shares[method].values())
        groups.setdefault(alike, []).append(method)
    return [_bar(same, cache.shares[same[0]]) for same in groups.values()]


def _bar(methods: Sequence[str], shares: Mapping[str, float]) -> Bar:
    parts = tuple(
        BarPart(
            teacher=teacher,
            number=number,
            share=share,
            text=f"{teacher} {percent_text(share)}" if share >= READABLE_SHARE else "",
        )
        for number, (teacher, share) in enumerate(shares.items())
    )
    return Bar(label=", ".join(map(method_label, methods)), parts=parts)


MAX_ERROR = 1.5
"""Errors beyond fill the track: one run that fails must not make all other bars a hair."""


def error_groups(runs: Sequence[RunFacts]) -> list[ErrorGroup]:
    """Errors by teacher and kind, the worst of the best run first; runs in their order."""
    ranked = by_error(runs)
    if not ranked:
        return []
    targets = {(line.teacher, line.kind): -line.error for line in ranked[0].evaluation}
    for run in ranked:
        for line in run.evaluation:
            targets.setdefault((line.teacher, line.kind), 0.0)
    ends = [line.error_high or line.error for run in ranked for line in run.evaluation]
    scale = 100 / (1.05 * min(MAX_ERROR, max(1.0, *ends)))
    groups = []
    for teacher, kind in sorted(targets, key=lambda target: targets[target]):
        entries = [
            ErrorBar(
                run=run.name,
                text=_with_interval(line),
                width=min(100.0, scale * line.error),
                low=min(100.0, scale * (line.error if line.error_low is None else line.error_low)),
                high=min(
                    100.0, scale * (line.error if line.error_high is None else line.error_high)
                ),
            )
            for run in ranked
            for line in [run.row(teacher, kind)]
            if line is not None
        ]
        groups.append(ErrorGroup(teacher=teacher, kind=kind, one=scale, bars=tuple(entries)))
    return groups


def contrast_line(found: Contrast) -> tuple[str, str, str, str]:
    """Key, the better setting with its value, the worse one with its own, and the difference."""
    sides = [
        f"{one.name} ({value})"
        for one, value in zip((found.better, found.worse), found.values, strict=True)
    ]
    return found.setting, sides[0], sides[1], difference_text(found.apart)


def setting_lines(settings: Sequence[Setting]) -> list[tuple[str, str, str, str, str, str]]:
    """Rank, setting, seeds, mean error, the least and largest of a seed, and the difference to the
    best, for settings that come best first."""
    lines = []
    for rank, one in zip(ranks(settings), settings, strict=True):
        spread = f"{one.low:.3f} to {one.high:.3f}" if one.runs[1:] else DASH
        found = None if one is settings[0] else compared(one, settings[0]).over_images
        behind = DASH if found is None else difference_text(found)
        lines.append((rank, one.name, str(len(one.runs)), f"{one.mean:.3f}", spread, behind))
    return lines


def eval_lines(teachers: Sequence[str], runs: Sequence[RunFacts]) -> list[EvalLine]:
    """The evaluation by teacher, kind and run; the lowest error of each target is marked."""
    lines: list[EvalLine] = []
    for teacher in teachers:
        for kind in (PATCHES, SUMMARY):
            entries = [
                (run, label, line)
                for label in ("trained", "untrained")
                for run in runs
                if (line := run.row(teacher, kind, label)) is not None
            ]
            errors = [line.error for _, _, line in entries]
            lines += [
                EvalLine(
                    teacher=teacher,
                    kind=kind,
                    run=run.name,
                    untrained=label == "untrained",
                    first=bool(lines) and number == 0,
                    best=len(errors) > 1 and line.error == min(errors),
                    loses=line.beats_constant is False and label == "trained",
                    mse=DASH if line.mse is None else number_text(line.mse),
                    error=_with_interval(line),
                    cosine=f"{line.cosine:.3f}".replace("-", "−"),
                    constant=f"{line.constant_cosine:.3f}".replace("-", "−"),
                )
                for number, (run, label, line) in enumerate(entries)
            ]
    return lines


def _with_interval(line: EvalRow) -> str:
    if line.error_low is None or line.error_high is None:
        return f"{line.error:.3f}"
    return f"{line.error:.3f} [{line.error_low:.3f}, {line.error_high:.3f}]"


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[bool]:
    """Whether a column holds numbers, possibly with an interval or unit behind them."""
    return [
        column > 0
        and any(_starts_like_number(row[column]) for row in rows)
        and all(_starts_like_number(row[column]) for row in rows if str(row[column]) not in _EMPTY)
        for column in range(len(header))
    ]


_EMPTY = ("", "-", DASH)


def _starts_like_number(cell: object) -> bool:
    text = str(cell).lstrip("+-−")
    return text[:1].isdigit() or text[:1] == "."
