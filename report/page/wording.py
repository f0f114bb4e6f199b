"""Numbers, and the settings' own names, as words of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from phistill.train import EvalRow

from .gather import BEFORE, CacheFacts, share_extremes
from .settings import Setting, error_of_direction

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

LOSS_WORDS = {
    "mse": "mean squared error",
    "cosine": "1 minus the cosine, so direction alone: the length of a feature is left open",
    "hybrid-mse": "0.9 cosine + 0.1 mse (unless hybrid beta is set): direction above all",
    "hybrid-smooth-l1": "0.9 cosine + 0.1 smooth-l1, which is quadratic below an error of 1 and "
    "linear above: direction above all",
    "balanced-angle": "the squared angle over the teacher's own mean squared angle",
}

BALANCE_WORDS = {
    "equal": "the terms of all teachers count once",
    "fixed": "the terms count by given weights",
    "adaloss": "each term is divided by its own running mean (AdaLoss)",
}


def explained(settings: Sequence[Setting], methods: Iterable[str]) -> list[tuple[str, str]]:
    """Title and text for every normalizer, loss and balance that the page names."""
    configs = [one.runs[0].student.config for one in settings]
    shown = (
        ("Normalizers", METHOD_WORDS, {*methods, *(one.normalizer for one in configs)}),
        ("Patch losses", LOSS_WORDS, {one.patch_loss for one in configs}),
        ("Summary losses", LOSS_WORDS, {one.summary_loss for one in configs}),
        ("Balance", BALANCE_WORDS, {one.balance for one in configs}),
    )
    return [
        (title, "; ".join(f"{name}: {words[name]}" for name in words if name in named) + ".")
        for title, words, named in shown
        if named & words.keys()
    ]


def in_words(values: Mapping[str, Any]) -> str:
    """``patch loss mse, balance equal``."""
    return ", ".join(f"{word_of(key)} {value_text(value)}" for key, value in values.items())


def word_of(key: str) -> str:
    """``patch loss`` of ``patch_loss``."""
    return key.replace("_", " ")


def value_text(value: Any) -> str:
    """A setting's value for a reader: ``a=1, b=2`` of a table, ``none`` of nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={one}" for key, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def direction_text(row: EvalRow) -> str:
    """``in direction alone 0.12``, where the error as a whole is no better than the constant."""
    return f"in direction alone {error_of_direction(row):.2f}"


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
        f"After phi-s each of the {len(cache.teachers)} teachers holds {even}."
    )


def made_with_text(settings: Sequence[Setting]) -> str:
    """The versions the runs were trained with, each combination once."""
    versions = dict.fromkeys(
        f"phistill {facts['phistill']}, torch {facts['torch']}, timm {facts['timm']}"
        for facts in (run.student.facts for one in settings for run in one.runs)
    )
    return f"Trained with {'; '.join(versions)}." if versions else ""


def error_text(line: EvalRow) -> str:
    """With its interval, where there is one."""
    if line.error_low is None or line.error_high is None:
        return f"{line.error:.3f}"
    return f"{line.error:.3f} [{line.error_low:.3f}, {line.error_high:.3f}]"
