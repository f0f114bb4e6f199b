"""The bars of the page: who would own the loss, and the errors by teacher and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .gather import AFTER, BEFORE, CacheFacts
from .settings import Setting, ranked
from .wording import error_text, percent_text

READABLE_SHARE = 0.22
"""A part of a bar narrower than this has no room for its name; it is named below the bar."""

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)

MAX_ERROR = 1.5
"""Errors beyond fill the track: one that fails must not make all other bars a hair."""


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
class ErrorBar:
    """One setting's error; lengths are percentages of the width."""

    setting: str
    text: str
    width: float
    low: float
    high: float
    is_cut: bool
    """Whether the error lies beyond the track."""


@dataclass(frozen=True, kw_only=True)
class ErrorGroup:
    """The bars of one teacher and kind."""

    teacher: str
    kind: str
    measure: str
    """What the error is of."""
    one: float
    """Where the constant lies."""
    ticks: tuple[tuple[str, float], ...]
    """Errors of the axis below the bars, and where they lie."""
    bars: tuple[ErrorBar, ...]

    @property
    def has_cut(self) -> bool:
        return any(bar.is_cut for bar in self.bars)


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
    return Bar(label=", ".join(methods), parts=parts)


def error_groups(settings: Sequence[Setting]) -> list[ErrorGroup]:
    """Errors by teacher and kind, the worst of the best setting first; settings in their order."""
    evaluated = ranked(settings)
    if not evaluated:
        return []
    targets = {(row.teacher, row.kind): -row.error for row in evaluated[0].rows}
    for line in (line for one in evaluated for line in one.rows):
        targets.setdefault((line.teacher, line.kind), 0.0)
    ends = [row.error_high or row.error for one in evaluated for row in one.rows]
    most = 1.05 * min(MAX_ERROR, max(1.0, *ends))
    groups = []
    for teacher, kind in sorted(targets, key=lambda target: targets[target]):
        bars = []
        for one in evaluated:
            row = one.row(teacher, kind)
            if row is None:
                continue
            low, high = (
                row.error if end is None else end for end in (row.error_low, row.error_high)
            )
            width, left, right = (100 * min(1.0, at / most) for at in (row.error, low, high))
            bars.append(
                ErrorBar(
                    setting=one.name,
                    text=error_text(row),
                    width=width,
                    low=left,
                    high=right,
                    is_cut=row.error > most,
                )
            )
        rows = (one.row(teacher, kind) for one in evaluated)
        squared = any(row.mse is not None for row in rows if row is not None)
        groups.append(
            ErrorGroup(
                teacher=teacher,
                kind=kind,
                measure="squared error" if squared else "1 − cosine",
                one=100 / most,
                ticks=tuple((f"{at:g}", 100 * at / most) for at in TICKS if at <= most),
                bars=tuple(bars),
            )
        )
    return groups
