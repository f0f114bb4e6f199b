"""The tables of the page, as text: ranking, every figure, one choice alone, what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contrasts import Contrast, behind_text, own_words, varying
from .gather import PATCHES
from .settings import Setting, choices, error_of_direction, ranked, ranks
from .students import Diverged
from .wording import (
    DASH,
    error_text,
    in_words,
    number_text,
    value_text,
    word_of,
)

SUMMARY = "summary"
SHOWN = (
    *("normalizer", "patch_loss", "summary_loss", "balance"),
    *("lr", "min_lr", "warmup", "optimizer", "weight_decay"),
)
"""Choices that are always said, whether they vary or not."""


@dataclass(frozen=True, kw_only=True)
class SettingLine:
    """One setting in the ranking."""

    rank: str
    name: str
    drawn: bool
    """Whether it has a colour."""

    changes: str
    """The values that vary, of the best; of others those that are not the best's."""

    seeds: str
    """Those that ended, ``2 of 3`` where not all did."""

    mean: str
    spread: str
    directions: str
    behind: str


@dataclass(frozen=True, kw_only=True)
class EvalLine:
    """One line of the evaluation table, as text."""

    teacher: str
    kind: str
    setting: str
    run: str
    untrained: bool
    first: bool
    best: bool
    loses: bool
    """Whether it is no better than the constant."""
    mse: str
    error: str
    cosine: str
    direction: str
    """1 - cosine over that of the constant."""
    constant: str
    """The constant's cosine."""


def setting_lines(
    settings: Sequence[Setting], diverged: Sequence[Diverged] = ()
) -> list[SettingLine]:
    """The evaluated settings best first, then those of which every run diverged."""
    evaluated = ranked(settings)
    lost = [one.setting for one in diverged]
    lines = []
    for rank, one in zip(ranks(evaluated), evaluated, strict=True):
        best, num = evaluated[0], len(one.runs)
        keys = varying(evaluated)
        own = (
            in_words({k: v for k, v in choices(one.runs[0]).items() if k in keys})
            if one is best
            else own_words(one, best)
        )
        gone = lost.count(one.name)
        lines.append(
            SettingLine(
                rank=rank,
                name=one.name,
                drawn=True,
                changes=own or DASH,
                seeds=f"{num} of {num + gone}" if gone else str(num),
                mean=f"{one.mean:.3f}",
                spread=f"{one.low:.3f} to {one.high:.3f}" if one.runs[1:] else DASH,
                directions=f"{one.of_directions:.3f}",
                behind=DASH if one is best else behind_text(one, best),
            )
        )
    names = {line.name for line in lines}
    return lines + [
        SettingLine(
            rank=DASH,
            name=one.setting,
            drawn=False,
            changes=in_words(one.changes),
            seeds=f"0 of {lost.count(one.setting)}",
            mean=DASH,
            spread=DASH,
            directions=DASH,
            behind="every run diverged",
        )
        for number, one in enumerate(diverged)
        if one.setting not in {*names, *lost[:number]}
    ]


def contrast_lines(found: Contrast) -> list[tuple[str, str, str, str, str]]:
    """Value, setting, mean error, the difference to the first, and the error of directions."""
    first = found.settings[0]
    return [
        (
            value,
            one.name,
            f"{one.mean:.3f}",
            DASH if one is first else behind_text(one, first),
            f"{one.of_directions:.3f}",
        )
        for value, one in zip(found.values, found.settings, strict=True)
    ]


def eval_lines(teachers: Sequence[str], settings: Sequence[Setting]) -> list[EvalLine]:
    """Every figure, by teacher and kind, settings in their order, seeds by their errors; the lowest
    error of each target is marked."""
    runs = [(one.name, run) for one in ranked(settings) for run in one.runs]
    lines: list[EvalLine] = []
    for teacher in teachers:
        for kind in (PATCHES, SUMMARY):
            entries = [
                (name, run, label, row)
                for label in ("trained", "untrained")
                for name, run in runs
                if (row := run.row(teacher, kind, label)) is not None
            ]
            errors = [row.error for *_, row in entries]
            lines += [
                EvalLine(
                    teacher=teacher,
                    kind=kind,
                    setting=name,
                    run=run.name,
                    untrained=label == "untrained",
                    first=bool(lines) and number == 0,
                    best=len(errors) > 1 and row.error == min(errors),
                    loses=label == "trained" and row.beats_constant is False,
                    mse=DASH if row.mse is None else number_text(row.mse),
                    error=error_text(row),
                    direction=f"{error_of_direction(row):.3f}",
                    cosine=f"{row.cosine:.3f}".replace("-", "−"),
                    constant=f"{row.constant_cosine:.3f}".replace("-", "−"),
                )
                for number, (name, run, label, row) in enumerate(entries)
            ]
    return lines


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained: a table of what varies, a list of what does not."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    """Setting and its cells; () where nothing varies."""

    same: tuple[tuple[str, str], ...]


def trained(settings: Sequence[Setting]) -> Trained:
    """Of every setting, in their order."""
    facts = [_trained(one, varying(settings)) for one in settings]
    names = list(facts[0]) if facts else []
    vary = [name for name in names if len({one[name] for one in facts}) > 1]
    return Trained(
        columns=tuple(vary),
        lines=tuple(
            (one.name, tuple(each[name] for name in vary))
            for one, each in zip(settings, facts, strict=True)
            if vary
        ),
        same=tuple((name, facts[0][name]) for name in names if name not in vary),
    )


def _trained(one: Setting, keys: Sequence[str]) -> dict[str, str]:
    run = one.runs[0]
    config, student = choices(run), run.student
    options = value_text(config["student_options"])
    said = {"student", "student_options", "image_size", "num_steps", "epochs", "batch_size"}
    return {
        **{word_of(key): value_text(config[key]) for key in SHOWN},
        **{word_of(key): value_text(config[key]) for key in keys if key not in {*SHOWN, *said}},
        "student": config["student"] + (f" ({options})" if config["student_options"] else ""),
        "parameters": f"{run.num_parameters:,}",
        "input": f"{student.image_size} px",
        "steps": f"{student.facts['num_steps']:,}",
        "batch": f"{config['batch_size']}",
        "training rows": f"{student.facts['num_rows']:,}",
        "seeds": ", ".join(sorted(str(each.student.config.seed) for each in one.runs)),
    }


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
