"""The drawings of a report, each from gathered numbers to one inline SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .canvas import (
    DASHES,
    FONT_SIZE,
    INK,
    MUTED,
    Canvas,
    run_colour,
    run_dash,
    teacher_colour,
)
from .gather import AFTER, BEFORE, CacheFacts, PatchFacts
from .settings import Setting
from .students import RELATIVE

FLOOR = 1e-7
"""Eigenvalues below this share of the largest are not drawn: rounding to float16, whose errors
have a variance of about (2^-11)^2 / 3 = 8e-8 of a value's square, fills even empty directions."""

DOTS: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 2.6, "markeredgewidth": 0}
SMALL = FONT_SIZE - 1


def spectra(cache: CacheFacts, *, scaled: bool) -> str:
    """Eigenvalues of every teacher's covariance; ``scaled``: after PHI-S, divided by phi^2."""
    with Canvas() as canvas:
        shown = []
        for number, facts in enumerate(cache.patches):
            values = facts.eigenvalues / (facts.phi**2 if scaled else 1.0)
            values = values[values > FLOOR * values[0]]
            shown.append(values)
            ranks = np.arange(1, len(values) + 1)
            canvas.axes.plot(ranks, values, color=teacher_colour(number), linewidth=1.6)
        longest = max(len(values) for values in shown)
        canvas.log_axis("x", [1, longest])
        canvas.log_axis("y", np.concatenate(shown))
        canvas.axes.set_xlabel("principal component")
        canvas.axes.set_ylabel("variance after phi-s" if scaled else "variance, raw units")
        name = "spectra-after" if scaled else "spectra-before"
        when = "after phi-s" if scaled else "of the raw features"
        return canvas.svg(name, f"Eigenvalue spectra {when}, one line per teacher")


def channels(cache: CacheFacts, number: int) -> str:
    """Channel variances of one teacher, raw and after PHI-S, on training and held-out rows."""
    facts, colour = cache.patches[number], teacher_colour(number)
    before, after = facts.train[BEFORE], facts.train[AFTER]
    with Canvas() as canvas:
        shown = _channel_line(canvas, facts, BEFORE, MUTED) + _channel_line(
            canvas, facts, AFTER, colour
        )
        if facts.chance is not None:
            canvas.axes.axhspan(*facts.chance, color=colour, alpha=0.13, linewidth=0)
        canvas.log_axis("y", np.concatenate(shown))
        canvas.axes.set_xlim(-0.02 * facts.width, 1.02 * facts.width)
        early = facts.width // 12
        _say(canvas, "none", (early, np.sort(before)[::-1][early]), INK, left=True)
        _say(canvas, "phi-s", (facts.width - 1, after.max()), colour, left=False)
        canvas.axes.set_xlabel("channel, by variance")
        canvas.axes.set_ylabel("variance")
        label = f"Channel variances of {facts.teacher} before and after PHI-S"
        return canvas.svg(f"channels-{_slug(facts.teacher)}", label)


def _channel_line(canvas: Canvas, facts: PatchFacts, method: str, colour: str) -> list[np.ndarray]:
    """Training rows as a line, held-out rows as dots in the same order of channels.

    Returns what was drawn; channels without variance have no place on a logarithmic axis.
    """
    order = np.argsort(-facts.train[method])
    where = np.arange(len(order))
    drawn = []
    if method in facts.heldout:
        dots = facts.heldout[method][order]
        canvas.axes.plot(where[dots > 0], dots[dots > 0], color=colour, alpha=0.6, **DOTS)
        drawn.append(dots[dots > 0])
    line = facts.train[method][order]
    canvas.axes.plot(where[line > 0], line[line > 0], color=colour, linewidth=1.4)
    return [*drawn, line[line > 0]]


def _say(canvas: Canvas, text: str, at: tuple[float, float], colour: str, *, left: bool) -> None:
    """A word above a point, beginning or ending there."""
    canvas.axes.annotate(
        text,
        at,
        xytext=(3 if left else 0, 6),
        textcoords="offset points",
        ha="left" if left else "right",
        color=colour,
        fontsize=SMALL,
    )


Series = tuple[int, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""A setting's number, steps and values."""


def over_steps(name: str, title: str, unit: str, lines: Sequence[Series], *, one: bool) -> str:
    """A line per setting over the steps; ``one``: 1 is the constant, drawn dashed."""
    with Canvas() as canvas:
        shown = []
        for number, steps, values in lines:
            colour, dash = run_colour(number), DASHES[run_dash(number)]
            x, y = np.asarray(steps), np.asarray(values)
            kept = np.isfinite(y) & (y > 0)
            canvas.axes.plot(x[kept], y[kept], color=colour, linestyle=dash, linewidth=1.4)
            shown.append(y[kept])
        if one:
            canvas.axes.axhline(1.0, color=MUTED, linewidth=0.8, dashes=(4, 3))
            shown.append(np.ones(1))
        canvas.log_axis("y", np.concatenate(shown))
        canvas.axes.set_xlabel("step")
        canvas.axes.set_ylabel(unit)
        return canvas.svg(_slug(name), title)


Drawing = tuple[str, str, str]
"""Target, unit, and the picture."""


def held_out(settings: Sequence[Setting]) -> list[Drawing]:
    """Errors on held-out images while they trained, by target: one quantity for all settings."""
    lines: dict[str, list[Series]] = {}
    for number, one in enumerate(settings):
        for curve in one.curves:
            if len(curve.checks) > 1:
                steps, errors = zip(*curve.checks, strict=True)
                lines.setdefault(curve.target, []).append((number, steps, errors))
    return [
        (
            target,
            "error",
            over_steps(f"checks-{target}", f"Held-out error of {target}", "error", same, one=True),
        )
        for target, same in lines.items()
    ]


def losses(settings: Sequence[Setting]) -> list[Drawing]:
    """Training losses by target and unit: only what may be compared shares a picture."""
    lines: dict[tuple[str, str], list[Series]] = {}
    for number, one in enumerate(settings):
        for curve in one.curves:
            same = lines.setdefault((curve.target, curve.unit), [])
            same.append((number, curve.steps, curve.values))
    targets = [*dict.fromkeys(target for target, _ in lines)]
    return [
        (
            target,
            unit,
            over_steps(
                f"losses-{target}-{unit}",
                f"Training loss of {target}, {unit}",
                f"loss / {unit.rpartition(' / ')[2]}" if unit.endswith(RELATIVE) else "loss",
                same,
                one=unit.endswith(RELATIVE),
            ),
        )
        for target, unit in sorted(lines, key=lambda key: targets.index(key[0]))
        for same in [lines[target, unit]]
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)
