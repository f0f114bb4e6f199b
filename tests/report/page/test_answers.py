"""The questions that a report answers, and which runs it contrasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.report import report
from phistill.report.page.answers import (
    MAX_DRAWN,
    answers,
    contrasts,
    difference_text,
    one_per_setting,
)
from phistill.report.page.settings import apart, by_error, mean_error, ranks, settings_of
from phistill.report.page.students import (
    Diverged,
    RunFacts,
    diverged_below,
    gather_runs,
    runs_below,
)
from phistill.report.page.wording import error_groups
from phistill.stats.intervals import interval, ratio
from phistill.train import EvalRow, TrainConfig, train
from phistill.train.curve import CurveEnd

Config = Callable[..., TrainConfig]
Runs = tuple[Path, Path]


@pytest.fixture
def facts(cache: Cache, runs: Runs) -> tuple[RunFacts, ...]:
    return gather_runs(cache, runs, evaluations={}, can_evaluate=True, device="cpu")


def with_errors(run: RunFacts, name: str, *shares: float, **more: Any) -> RunFacts:
    """The run with these errors of its targets, measured on 60 images with the same noise."""
    noise = np.random.default_rng(0).lognormal(0.0, 0.3, 60)
    lines = []
    for line, share in zip(run.evaluation, shares, strict=True):
        columns = np.stack([share * noise, noise], 1)
        found = interval(columns, ratio)
        lines.append(
            replace(
                line,
                error=found.value,
                error_low=found.low,
                error_high=found.high,
                columns=columns,
            )
        )
    return replace(run, name=name, evaluation=tuple(lines), **more)


def test_the_answers_name_the_best_run_the_worst_teacher_and_what_to_try(
    facts: tuple[RunFacts, ...],
) -> None:
    balanced, raw = facts
    falling = CurveEnd(fall=0.2, low=0.1, high=0.3, num_lines=50)
    good = with_errors(balanced, "good", 0.2, 0.2, 0.5, end=falling)
    poor = with_errors(raw, "poor", 0.4, 0.4, 1.2)
    told = {one.question: one.text for one in answers([poor, good])}
    assert [*told] == [
        *("Is the student good?", "Which run is best?", "Which teacher is neglected?"),
        *("Is it still learning?", "What next?"),
    ]
    assert "Run good is on its way" in told["Is the student good?"]
    assert "The difference is real" in told["Which run is best?"]
    worst = max(good.evaluation, key=lambda line: line.error)
    assert told["Which teacher is neglected?"].startswith(f"{worst.teacher} ({worst.kind})")
    assert "still falling" in told["Is it still learning?"]
    assert "Train longer" in told["What next?"]
    assert "balance=fixed" in told["What next?"]
    alone = {one.question: one.text for one in answers([poor])}
    assert "No better than the constant" in alone["Is the student good?"]
    assert "Which run is best?" not in alone
    assert answers([]) == []


def test_runs_that_do_not_differ_by_images_are_tied(facts: tuple[RunFacts, ...]) -> None:
    one = with_errors(facts[0], "one", 0.3, 0.3, 0.3)
    same = with_errors(facts[1], "same", 0.3, 0.3, 0.3)
    text = {a.question: a.text for a in answers([one, same])}["Which run is best?"]
    assert "They are tied" in text
    assert "at most 0.000 either way" in text
    measured = apart([one], [same])
    assert measured is not None
    assert "no difference" in difference_text(measured)


def test_only_runs_that_differ_in_one_setting_are_contrasted(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "both", make_config(normalizer="none", lr=0.01))
    found = gather_runs(
        cache, [*runs, tmp_path / "both"], evaluations={}, can_evaluate=True, device="cpu"
    )
    pairs = {(one.setting, *sorted((one.better.name, one.worse.name))) for one in contrasts(found)}
    assert pairs == {("normalizer", "balanced", "raw"), ("lr", "both", "raw")}
    ranked = by_error(found)
    assert [mean_error(run) for run in ranked] == sorted(mean_error(run) for run in found)


def test_a_sweeps_folder_stands_for_its_runs(
    cache: Cache, runs: Runs, tmp_path: Path, shelf: Path
) -> None:
    assert runs_below(shelf / "runs") == sorted(runs)
    assert runs_below(runs[0]) == [runs[0]]
    page = report(cache, [shelf / "runs"], tmp_path / "r.html", device="cpu").read_text("utf-8")
    assert "balanced" in page
    assert "Settings that differ in one key" in page


def test_lines_without_images_in_common_are_not_compared(facts: tuple[RunFacts, ...]) -> None:
    def bare(line: EvalRow) -> EvalRow:
        return replace(line, columns=None)

    without = replace(facts[0], evaluation=tuple(map(bare, facts[0].evaluation)))
    assert apart([without], [facts[1]]) is None


def test_a_difference_is_held_against_what_seeds_make(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "again", make_config(normalizer="phi-s", seed=1))
    balanced, raw, again = gather_runs(
        cache, [*runs, tmp_path / "again"], evaluations={}, can_evaluate=True, device="cpu"
    )
    one = with_errors(balanced, "one", 0.30, 0.30, 0.30)
    other = with_errors(again, "other", 0.32, 0.32, 0.32)

    def told(*found: RunFacts) -> str:
        return {a.question: a.text for a in answers(found)}["Which run is best?"]

    near = with_errors(raw, "raw", 0.33, 0.33, 0.33)
    assert "not settled" in told(one, other, near)
    next_step = {a.question: a.text for a in answers([one, other, near])}["What next?"]
    assert next_step.startswith("More seeds of one / other and raw")
    far = told(one, other, with_errors(raw, "raw", 0.6, 0.6, 0.6))
    assert "one / other with a mean of 0.310 over 2 seeds (0.300 to 0.320); the next setting" in far
    assert "The difference is real" in far
    assert "seeds of one setting lie up to 0.020 apart" in far
    assert "all are one setting" in told(one, other)


def test_seeds_of_a_setting_that_fails_say_nothing_of_those_that_are_compared(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    for seed, lr in ((1, 1e-3), (0, 3e-3), (1, 3e-3)):
        config = make_config(normalizer="phi-s", seed=seed, lr=lr, num_steps=1)
        train(cache, tmp_path / f"{lr}-{seed}", config)
    paths = [*runs, *sorted(tmp_path.iterdir())]
    balanced, raw, *others = gather_runs(
        cache, paths, evaluations={}, can_evaluate=True, device="cpu"
    )
    failing = [
        with_errors(one, f"bad {e}", e, e, e) for one, e in zip(others[1:], (4.0, 9.0), strict=True)
    ]
    found = [
        with_errors(balanced, "good", 0.30, 0.30, 0.30),
        with_errors(raw, "raw", 0.60, 0.60, 0.60),
        *failing,
    ]
    lost = Diverged(name="lost,seed=0", setting="lost", changes="lr=9.0", step=46)
    text = {a.question: a.text for a in answers(found, [lost])}
    assert "not settled" not in text["Which run is best?"]
    assert text["Did every run end?"] == (
        "No: 5 runs of 4 settings, 1 of them diverged and cannot be compared. "
        "lost (lr=9.0): lost,seed=0 at step 46."
    )
    groups = error_groups(found)
    assert all(bar.width <= 100 for group in groups for bar in group.bars)
    assert groups[0].one > 60, "the constant is seen beside an error of 9"


def test_of_many_runs_one_per_setting_is_drawn(facts: tuple[RunFacts, ...]) -> None:
    few = [with_errors(facts[0], f"run {n}", 0.3, 0.3, 0.3) for n in range(MAX_DRAWN)]
    assert one_per_setting(few) == few
    many = [with_errors(facts[0], f"run {n}", e, e, e) for n, e in enumerate([0.3] * 7 + [0.5] * 6)]
    other = with_errors(facts[1], "other", 0.4, 0.4, 0.4)
    assert [run.name for run in one_per_setting([*many, other])] == ["run 6", "other"]


def test_settings_are_compared_by_their_means_over_seeds_under_one_name(
    cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    shares = {"a": (0.29, 0.30, 0.303), "b": (0.31, 0.308, 0.312), "c": (0.6, 0.61, 0.62)}
    for name, normalizer in zip(shares, ("phi-s", "none", "global"), strict=True):
        for seed in range(3):
            config = make_config(normalizer=normalizer, seed=seed, num_steps=1)
            train(cache, tmp_path / f"{name},seed={seed}", config)
    found = [
        with_errors(one, one.name, *[shares[one.name[0]][int(one.name[-1])]] * 3)
        for one in gather_runs(
            cache, sorted(tmp_path.iterdir()), evaluations={}, can_evaluate=True, device="cpu"
        )
    ]
    settings = settings_of(found)
    assert [one.name for one in settings] == ["a", "b", "c"]
    assert ranks(settings) == ["1=", "1=", "3"], "b is behind on images, not beyond what seeds make"
    text = {a.question: a.text for a in answers(found)}
    best = text["Which run is best?"]
    assert "a with a mean of 0.298 over 3 seeds (0.290 to 0.303)" in best
    assert "0.012 lower" in best, "of means, where the best seeds lie 0.018 apart"
    assert "It is not settled" in best
    assert "Every seed of a lies below every seed of b." in best
    assert "0.30 of the constant" in text["Is the student good?"]
    assert "a,seed=1" in text["Which teacher is neglected?"], "the middle seed"


def test_a_diverged_run_is_told_with_its_step_and_what_it_sets(tmp_path: Path) -> None:
    run = tmp_path / "wild,seed=1"
    run.mkdir()
    (run / "config.json").write_text('{"config": {"lr": 9.0, "seed": 1}}')
    (run / "cell.json").write_text(
        '{"setting": "wild", "settings": {"lr": 9.0, "optimizer": "sgd", "seed": 1}}'
    )
    (run / "diverged.json").write_text('{"step": 57}')
    assert diverged_below(tmp_path) == [
        Diverged(name="wild,seed=1", setting="wild", changes="lr=9.0, optimizer=sgd", step=57)
    ]
