"""Which settings of a sweep may be called better than others.

A column (a teacher's patches or summary) is compared in one quantity for all settings, and only
where all measured the same images. The best setting is compared with each other one on the same
bootstrap draws of images, on the mean over their seeds. Where seeds were repeated, the differences
of equal seeds must agree too (Student's t): a difference that either interval does not exclude is
a tie.

n images, k columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Float

from phistill.stats.intervals import LEVEL, Interval, difference, ratio, t_quantile

from .results import CellResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One column under one setting, over its seeds; lower is better."""

    values: tuple[float, ...]
    """Per seed: error over the constant's, of values, or of directions where any setting learns
    them alone."""

    raw: float | None
    """Mean squared error in the teacher's units, a mean over seeds."""

    rank: float | None = None
    """Among the settings, by mean; 1 is best, ties share the average. None where not comparable."""

    is_tied: bool = False
    """Whether the best one of the column cannot be told from it."""

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def half_interval(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds; None for a single seed."""
        return half_interval(self.values)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All seeds of one setting."""

    name: str
    cells: tuple[CellResult, ...]
    """Those that finished."""

    diverged: tuple[CellResult, ...]
    figures: Mapping[str, Figure]
    """By column."""

    average_rank: float | None = None
    """Over the columns that all settings have; None for what is not compared."""

    behind: Interval | None = None
    """Its mean score over these columns minus that of the best setting; None for the best."""

    is_tied: bool = False
    """Whether it cannot be told from the best."""

    @property
    def is_ranked(self) -> bool:
        return self.average_rank is not None


def compare(results: Sequence[CellResult]) -> list[Setting]:
    """Settings, the best first; those that diverged for a seed, or have no figures, come last."""
    by_setting: dict[str, list[CellResult]] = {}
    for result in results:
        if result.lines or result.diverged_at is not None:
            by_setting.setdefault(result.setting, []).append(result)
    finished = {name: [c for c in group if c.lines] for name, group in by_setting.items()}
    lost = {name: [c for c in group if not c.lines] for name, group in by_setting.items()}
    entrants = [name for name, group in finished.items() if group and not lost[name]]
    lines = [line for group in finished.values() for one in group for line in one.lines]
    columns = list(dict.fromkeys(line.column for line in lines))
    directions = {line.column for line in lines if line.unexplained is None}
    figures: dict[str, dict[str, Figure]] = {name: {} for name in by_setting}
    ranked = []
    for column in columns:
        found = _column(column, finished, entrants, directions=column in directions)
        if all(name in found and found[name].rank is not None for name in entrants):
            ranked.append(column)
        for name, figure in found.items():
            figures[name][column] = figure
    ranks = {
        name: fmean(figures[name][column].rank or math.nan for column in ranked)
        for name in (entrants if ranked else ())
    }
    best = min(ranks, key=lambda name: ranks[name], default=None)
    settings = []
    for name in by_setting:
        behind, is_tied = None, False
        if best is not None and name in ranks and name != best:
            behind, is_tied = _behind(
                finished[name], finished[best], {c: c in directions for c in ranked}
            )
        settings.append(
            Setting(
                name=name,
                cells=tuple(finished[name]),
                diverged=tuple(lost[name]),
                figures=figures[name],
                average_rank=ranks.get(name),
                behind=behind,
                is_tied=is_tied,
            )
        )
    return sorted(
        settings,
        key=lambda one: (
            one.average_rank is None,
            one.average_rank or 0.0,
            one.behind.value if one.behind is not None else -math.inf,
            not one.cells,
        ),
    )


def _column(
    column: str,
    finished: Mapping[str, Sequence[CellResult]],
    entrants: Sequence[str],
    *,
    directions: bool,
) -> dict[str, Figure]:
    """The figures of the settings that have the column; ranks among ``entrants``."""
    having = {
        name: [one for one in group if column in one.sums]
        for name, group in finished.items()
        if any(column in one.sums for one in group)
    }
    figures = {}
    for name, group in having.items():
        lines = [line for one in group for line in one.lines if line.column == column]
        raw = [line.mse for line in lines if line.mse is not None]
        figures[name] = Figure(
            values=tuple(
                float(ratio(_two(one, column, directions).sum(0, keepdims=True))[0])
                for one in group
            ),
            raw=fmean(raw) if len(raw) == len(group) else None,
        )
    competing = [name for name in entrants if name in having]
    images = {one.images[column] for name in competing for one in having[name]}
    if len(images) > 1 or len(competing) < 2:
        return figures
    means = {name: figures[name].mean for name in competing}
    best = min(means, key=lambda name: means[name])
    for name in competing:
        below = sum(other < means[name] for other in means.values())
        ties = sum(other == means[name] for other in means.values())
        is_tied = name != best and _is_tied(
            difference(
                _mean(having[name], column, directions), _mean(having[best], column, directions)
            ),
            _by_seed(having[name], figures[name].values),
            _by_seed(having[best], figures[best].values),
        )
        figures[name] = Figure(
            values=figures[name].values,
            raw=figures[name].raw,
            rank=below + (ties + 1) / 2,
            is_tied=is_tied,
        )
    return figures


def _behind(
    cells: Sequence[CellResult], best: Sequence[CellResult], columns: Mapping[str, bool]
) -> tuple[Interval, bool]:
    """How far the mean score over ``columns`` lies above that of the best, and whether that may be
    nothing; a column's flag says that directions alone are compared."""

    def sums(group: Sequence[CellResult]) -> Float[np.ndarray, "n k2"]:
        # Each cache has images of its own: they add nothing to the sums of another's columns.
        parts = [_mean(group, *column) for column in columns.items()]
        caches = [name.rpartition("/")[2].partition("@")[2] for name in columns]
        starts, num_images = {}, 0
        for cache, part in zip(caches, parts, strict=True):
            if cache not in starts:
                starts[cache], num_images = num_images, num_images + len(part)
        table = np.zeros((num_images, 2 * len(parts)))
        for number, (cache, part) in enumerate(zip(caches, parts, strict=True)):
            start = starts[cache]
            table[start : start + len(part), 2 * number : 2 * number + 2] = part
        return table

    def mean_score(drawn: Float[np.ndarray, "b k2"]) -> Float[np.ndarray, " b"]:
        pairs = drawn.reshape(len(drawn), len(columns), 2)
        return np.mean([ratio(pairs[:, number]) for number in range(len(columns))], axis=0)

    def by_seed(group: Sequence[CellResult]) -> dict[int | None, float]:
        scores = [float(mean_score(sums([one]).sum(0, keepdims=True))[0]) for one in group]
        return _by_seed(group, scores)

    found = difference(sums(cells), sums(best), mean_score)
    return found, _is_tied(found, by_seed(cells), by_seed(best))


def _is_tied(
    over_images: Interval, one: Mapping[int | None, float], best: Mapping[int | None, float]
) -> bool:
    """Whether images, or seeds where there are several, leave it open that the best is better."""
    if not over_images.is_positive:
        return True
    differences = [one[seed] - best[seed] for seed in one.keys() & best.keys()]
    half = half_interval(differences)
    return half is not None and fmean(differences) - half <= 0


def _by_seed(group: Sequence[CellResult], values: Sequence[float]) -> dict[int | None, float]:
    return {one.seed: value for one, value in zip(group, values, strict=True)}


def _two(one: CellResult, column: str, directions: bool) -> Float[np.ndarray, "n 2"]:
    """The sums whose ratio is the score."""
    return one.sums[column][:, [2, 3] if directions else [0, 1]]


def _mean(group: Sequence[CellResult], column: str, directions: bool) -> Float[np.ndarray, "n 2"]:
    return np.mean([_two(one, column, directions) for one in group], axis=0)


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean of few values (Student's t); None for a single one."""
    n = len(values)
    if n < 2:
        return None
    return -t_quantile((1 - LEVEL) / 2, n - 1) * stdev(values) / math.sqrt(n)
