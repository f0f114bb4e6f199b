"""What the table of a sweep calls better, worse and equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phistill.train.evaluation import EvalRow
from phistill.train.sweeps.compare import compare, half_interval
from phistill.train.sweeps.results import CellResult
from phistill.train.sweeps.tables import markdown

N = 200


def line(column: str, *, directions: bool = False) -> EvalRow:
    teacher, kind = column.split("/")
    return EvalRow(
        student="trained",
        teacher=teacher,
        kind=kind,
        num_rows=N,
        num_images=N,
        mse=None if directions else 3.0,
        baseline=None if directions else 1.0,
        cosine=0.5,
        constant_cosine=0.0,
        error=0.5,
        error_low=None,
        error_high=None,
    )


def cell(
    setting: str,
    seed: int,
    errors: dict[str, float],
    *,
    noise: float = 0.2,
    images: str = "same",
    directions: bool = False,
) -> CellResult:
    """Errors per image about a mean, hard images hard for everyone; 1 - cosine a tenth of them."""
    hardness = np.random.default_rng(0).gamma(2.0, 0.5, N)
    generator = np.random.default_rng([seed, *setting.encode()])
    sums = {}
    for column, error in errors.items():
        own = error * hardness * (1 + noise * generator.standard_normal(N))
        sums[column] = np.stack([own, np.ones(N), own / 10, np.ones(N)], 1)
    return CellResult(
        name=f"{setting},seed={seed}",
        setting=setting,
        settings={"seed": seed},
        lines=tuple(line(column, directions=directions) for column in errors),
        sums=sums,
        images=dict.fromkeys(errors, images),
    )


def named(results: list[CellResult]) -> dict[str, Any]:
    return {one.name: one for one in compare(results)}


def test_a_small_difference_that_every_image_shows_is_one() -> None:
    """The intervals of the two figures overlap; that of their difference excludes 0."""
    found = named([cell("a", 0, {"t/patches": 0.50}, noise=0.01),
                   cell("b", 0, {"t/patches": 0.52}, noise=0.01)])  # fmt: skip
    assert list(found) == ["a", "b"]
    behind = found["b"].behind
    assert behind.is_positive
    assert behind.value == pytest.approx(0.02, abs=5e-3)
    assert not found["b"].is_tied
    assert found["b"].figures["t/patches"].rank == 2
    assert behind.high - behind.low < 0.01  # unpaired, hard and easy images give about 0.1


def test_what_seeds_leave_open_is_a_tie_though_images_are_sure() -> None:
    errors = {"a": (0.50, 0.60, 0.40), "b": (0.53, 0.55, 0.50)}
    found = named(
        [
            cell(name, seed, {"t/patches": error}, noise=0.01)
            for name, values in errors.items()
            for seed, error in enumerate(values)
        ]
    )
    worse = list(found.values())[1]
    assert worse.behind.is_positive
    assert worse.is_tied
    assert worse.figures["t/patches"].is_tied


def test_a_column_is_compared_in_what_all_settings_have() -> None:
    """One setting learns directions, the other by value: both have a cosine."""
    found = named(
        [
            cell("a", 0, {"t/summary": 0.5}, directions=True),
            cell("b", 0, {"t/summary": 0.9}),
        ]
    )
    assert found["a"].figures["t/summary"].mean == pytest.approx(0.05, rel=0.2)
    assert found["b"].figures["t/summary"].mean == pytest.approx(0.09, rel=0.2)
    assert found["a"].figures["t/summary"].raw is None


def test_other_images_and_missing_columns_are_not_ranked() -> None:
    results = [
        cell("a", 0, {"t/patches": 0.5, "u/patches": 0.1}),
        cell("b", 0, {"t/patches": 0.9}),
        cell("c", 0, {"t/patches": 0.7, "u/patches": 0.2}),
    ]
    found = named(results)
    # The average is over what all have, or a would win by a column that b lacks.
    assert {name: one.average_rank for name, one in found.items()} == {"a": 1, "c": 2, "b": 3}
    others = named([*results[:2], cell("c", 0, {"t/patches": 0.7}, images="other")])
    assert {one.average_rank for one in others.values()} == {None}
    text = markdown(compare([*results[:2], cell("c", 0, {"t/patches": 0.7}, images="other")]))
    assert "| a | 1 | - | - |" in text


def test_a_setting_that_diverged_for_a_seed_is_shown_and_not_ranked() -> None:
    lost = CellResult(name="b,seed=1", setting="b", settings={"seed": 1}, diverged_at=13)
    results = [
        *(cell("a", seed, {"t/patches": 0.5}) for seed in (0, 1)),
        cell("b", 0, {"t/patches": 0.1}),
        *(cell("c", seed, {"t/patches": 0.6}) for seed in (0, 1)),
        lost,
    ]
    found = named(results)
    assert list(found) == ["a", "c", "b"]
    assert found["b"].average_rank is None
    text = markdown(compare(results))
    assert "| b | 1 of 2, diverged | - | - |" in text
    assert "Diverged at step 13, and not in the table: b,seed=1." in text


def test_intervals_over_seeds_are_those_of_student() -> None:
    # t(0.975, 1) times the standard error of two values 0.2 apart, which is 0.1.
    assert half_interval([0.4, 0.6]) == pytest.approx(1.27062, rel=1e-5)
    assert half_interval([0.4]) is None


def test_equal_settings_share_a_rank() -> None:
    found = named([cell("x", 0, {"t/patches": 0.5}), cell("y", 0, {"t/patches": 0.2})])
    assert [one.average_rank for one in found.values()] == [1, 2]
    one = cell("x", 0, {"t/patches": 0.5})
    twin = CellResult(
        name="z", setting="z", settings={}, lines=one.lines, sums=one.sums, images=one.images
    )
    both = named([one, twin])
    assert [setting.average_rank for setting in both.values()] == [1.5, 1.5]
    assert list(both.values())[1].is_tied


def test_in_equal_studies_the_best_is_told_from_others_as_seldom_as_the_level_says() -> None:
    """Two settings with the same error: 5 % of such tables may call one worse, either way round."""
    apart = 0
    for number in range(60):
        results = [cell(f"{name}{number}", 0, {"t/patches": 0.5}, noise=0.5) for name in ("a", "b")]
        apart += sum(not one.is_tied for one in compare(results)[1:])
    assert apart <= 9  # of 60 at 5 %: more than 8 come once in 400 times
