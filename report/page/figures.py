"""The drawings of a report, each from gathered numbers to one inline SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .canvas import (
    DASHES,
    FONT_SIZE,
    INK,
    MARKERS,
    MUTED,
    Canvas,
    run_colour,
    run_dash,
    teacher_colour,
)
from .gather import AFTER, BEFORE, CacheFacts, PatchFacts
from .students import Curve

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
        canvas.axes.set_ylabel("variance after PHI-S" if scaled else "variance, raw units")
        name = "spectra-after" if scaled else "spectra-before"
        when = "after PHI-S" if scaled else "of the raw features"
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
        _say(canvas, "raw", (early, np.sort(before)[::-1][early]), INK, left=True)
        _say(canvas, "PHI-S", (facts.width - 1, after.max()), colour, left=False)
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


def learning(curves: Sequence[Curve], numbers: Mapping[str, int]) -> str:
    """One target's curves, a line per run; ``numbers`` are the runs' places in the report."""
    target = curves[0].target
    relative = all(curve.relative for curve in curves)
    with Canvas() as canvas:
        shown = []
        for curve in curves:
            colour, dash = run_colour(numbers[curve.run]), run_dash(numbers[curve.run])
            kept = np.isfinite(curve.values) & (curve.values > 0)
            steps, values = curve.steps[kept], curve.values[kept]
            canvas.axes.plot(steps, values, color=colour, linestyle=DASHES[dash], linewidth=1.4)
            shown.append(values)
            if relative and curve.checks:
                steps, values = np.array(curve.checks).T
                canvas.axes.plot(
                    steps,
                    values,
                    color=colour,
                    linestyle="none",
                    marker=MARKERS[dash],
                    markersize=4,
                )
                shown.append(values)
        if relative:
            canvas.axes.axhline(1.0, color=MUTED, linewidth=0.8, dashes=(4, 3))
            shown.append(np.ones(1))
        canvas.log_axis("y", np.concatenate(shown))
        canvas.axes.set_xlabel("step")
        canvas.axes.set_ylabel("loss / loss of the mean" if relative else "loss")
        return canvas.svg(f"learning-{_slug(target)}", f"Learning curves of {target}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)
