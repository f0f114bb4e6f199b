"""The questions that a report answers, and which runs it contrasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.report import report
from phistill.report.page.answers import answers, neglected
from phistill.report.page.bars import error_groups
from phistill.report.page.contrasts import contrasts, difference_text, own_words
from phistill.report.page.page import MAX_MAPPED, drawn_in_maps
from phistill.report.page.settings import Setting, apart, ranks, settings_of
from phistill.report.page.students import (
    Diverged,
    RunFacts,
    diverged_below,
    gather_runs,
    runs_below,
)
from phistill.report.page.tables import eval_lines, setting_lines, trained
from phistill.stats.intervals import interval, ratio
from phistill.train import EvalRow, TrainConfig, evaluate, train

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


def told(runs: Sequence[RunFacts], diverged: Sequence[Diverged] = ()) -> dict[str, str]:
    """The answers by question."""
    return {one.question: one.text for one in answers(settings_of(runs), diverged)}


def test_the_answers_name_the_best_run_the_worst_teacher_and_what_to_try(
    facts: tuple[RunFacts, ...],
) -> None:
    balanced, raw = facts
    falling = tuple(1 - 0.005 * n for n in range(100))
    good = with_errors(balanced, "good", 0.2, 0.2, 0.5, losses=falling)
    poor = with_errors(raw, "poor", 0.4, 0.4, 1.2)
    text = told([poor, good])
    assert [*text] == [
        *("Is the student good?", "Which run is best?", "Did every run end well?"),
        *("Which teacher is neglected?", "Is it still learning?", "What next?"),
    ]
    assert "Yes, but these end no better" in text["Did every run end well?"]
    assert "poor (quiet patches (in direction" in text["Did every run end well?"]
    assert "a mean over 3 targets, each as much" in text["Is the student good?"]
    assert "trade" not in text["Which run is best?"]
    assert "Run good is on its way" in text["Is the student good?"]
    assert "The difference is real" in text["Which run is best?"]
    assert "They differ in normalizer (phi-s against none) alone." in text["Which run is best?"]
    assert text["Which teacher is neglected?"] == (
        "Error by teacher in good, the worst first: quiet 0.50 (patches 0.50); loud 0.20 (patches "
        "0.20, summary 0.20). quiet: 2.5 times the error of loud. No setting learns one of them "
        "much better: harder to learn, as far as these settings tell, rather than neglected."
    )
    assert "still falling" in text["Is it still learning?"]
    assert "Train longer" in text["What next?"]
    alone = told([poor])
    assert (
        "No better than the constant for quiet patches (in direction"
        in (alone["Is the student good?"])
    )
    assert "one setting alone does not tell" in alone["Which teacher is neglected?"]
    assert "Which run is best?" not in alone
    assert answers([]) == []


def test_a_teacher_that_another_setting_learns_much_better_is_neglected(
    facts: tuple[RunFacts, ...],
) -> None:
    best = with_errors(facts[0], "best", 0.10, 0.10, 0.50)
    even = with_errors(facts[1], "even", 0.35, 0.35, 0.30)
    settings = settings_of([best, even])
    assert {name: one.name for name, (one, _) in neglected(settings).items()} == {"quiet": "even"}
    text = told([best, even])
    assert (
        "By images it is better on loud patches (0.100 for 0.350), loud summary (0.100 for 0.350) "
        "and worse on quiet patches (0.500 for 0.300): the mean hides a trade."
    ) in text["Which run is best?"]
    assert (
        "another setting learns it much better: quiet (even has 0.30)"
        in (text["Which teacher is neglected?"])
    )
    assert "balance=fixed, weights={quiet = 2}" in text["What next?"]


def test_what_an_untrained_student_scores_is_no_part_of_a_runs_error(
    cache: Cache, runs: Runs
) -> None:
    lines = evaluate(runs[0], cache, untrained=True)
    known = {runs[0]: lines}
    (one,) = settings_of(
        gather_runs(cache, runs[:1], evaluations=known, can_evaluate=True, device="cpu")
    )
    assert one.mean == pytest.approx(np.mean([x.error for x in lines if x.student == "trained"]))


def test_runs_that_do_not_differ_by_images_are_tied(facts: tuple[RunFacts, ...]) -> None:
    one = with_errors(facts[0], "one", 0.3, 0.3, 0.3)
    same = with_errors(facts[1], "same", 0.3, 0.3, 0.3)
    text = told([one, same])["Which run is best?"]
    assert "They are tied" in text
    assert "at most 0.000 either way" in text
    measured = apart(*settings_of([one, same]))
    assert measured is not None
    assert "no difference" in difference_text(measured)


def test_what_one_choice_does_is_told_by_settings_that_agree_in_all_others(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "both", make_config(normalizer="none", lr=0.01))
    settings = settings_of(
        gather_runs(
            cache, [*runs, tmp_path / "both"], evaluations={}, can_evaluate=True, device="cpu"
        )
    )
    assert [one.mean for one in settings] == sorted(one.mean for one in settings)
    found = {
        (one.key, one.rest, *sorted(other.name for other in one.settings))
        for one in contrasts(settings)
    }
    assert found == {
        ("normalizer", "lr 0.001", "balanced", "raw"),
        ("lr", "normalizer none", "both", "raw"),
    }


def test_settings_that_differ_in_several_keys_are_compared_with_the_best_and_say_in_which(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(normalizer="none", lr=0.01, patch_loss="cosine", num_steps=1)
    train(cache, tmp_path / "both", config)
    paths = [runs[0], tmp_path / "both"]
    balanced, both = gather_runs(cache, paths, evaluations={}, can_evaluate=True, device="cpu")
    found = [with_errors(balanced, "best", 0.3, 0.3, 0.3), with_errors(both, "far", 0.6, 0.6, 0.6)]
    best, far = settings_of(found)
    assert contrasts([best, far]) == []
    assert own_words(far, best) == "normalizer none, patch loss cosine, num steps 1, lr 0.01"
    first, second = setting_lines([best, far])
    assert first.changes == "normalizer phi-s, patch loss mse, num steps 3, lr 0.001"
    assert second.behind.startswith("0.300 higher, 95\u00a0% interval")
    assert "the difference is that of all 4 together" in told(found)["Which run is best?"]
    shown = trained([best, far])
    assert shown.columns == ("normalizer", "patch loss", "lr", "steps")
    assert dict(shown.lines)["far"] == ("none", "cosine", "0.01", "1")
    assert {"summary loss": "cosine", "balance": "equal"}.items() <= dict(shown.same).items()
    assert {"optimizer": "adamw", "warmup": "0.05"}.items() <= dict(shown.same).items()
    assert trained([best]).lines == ()


def test_a_sweeps_folder_stands_for_its_runs(
    cache: Cache, runs: Runs, tmp_path: Path, shelf: Path
) -> None:
    assert runs_below(shelf / "runs") == sorted(runs)
    assert runs_below(runs[0]) == [runs[0]]
    page = report(cache, [shelf / "runs"], tmp_path / "r.html", device="cpu").read_text("utf-8")
    assert "balanced" in page
    assert "What one choice alone does" in page


def test_lines_without_images_in_common_are_not_compared(facts: tuple[RunFacts, ...]) -> None:
    def bare(line: EvalRow) -> EvalRow:
        return replace(line, columns=None)

    without = replace(facts[0], evaluation=tuple(map(bare, facts[0].evaluation)))
    assert apart(*settings_of([without, facts[1]])) is None


def test_a_difference_is_held_against_what_seeds_make(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "again", make_config(normalizer="phi-s", seed=1))
    balanced, raw, again = gather_runs(
        cache, [*runs, tmp_path / "again"], evaluations={}, can_evaluate=True, device="cpu"
    )
    one = with_errors(balanced, "one", 0.30, 0.30, 0.30)
    other = with_errors(again, "other", 0.32, 0.32, 0.32)

    def best(*found: RunFacts) -> str:
        return told(found)["Which run is best?"]

    near = with_errors(raw, "raw", 0.33, 0.33, 0.33)
    assert "leave it open" in best(one, other, near)
    next_step = told([one, other, near])["What next?"]
    assert next_step.startswith("More seeds of one / other and raw")
    far = best(one, other, with_errors(raw, "raw", 0.6, 0.6, 0.6))
    assert "one / other with a mean of 0.310 over 2 seeds (0.300 to 0.320); the next setting" in far
    assert "The difference is real" in far
    assert "seeds of one setting lie up to 0.020 apart" in far
    assert "all are one setting" in best(one, other)


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
    lost = Diverged(name="lost,seed=0", setting="lost", changes={"lr": 9.0}, step=46)
    text = told(found, [lost])
    assert "leave it open" not in text["Which run is best?"]
    assert text["Did every run end well?"] == (
        "No: 5 runs of 4 settings, 1 run diverged and cannot be compared. "
        "lost (lr 9): lost,seed=0 at step 46. These end no better than the constant somewhere: "
        "bad 4.0 / bad 9.0 (loud patches (in direction alone 1.15), loud summary, "
        "quiet patches (in direction alone 1.08)). "
        "Where that of the direction is well below 1, lengths are wrong."
    )
    *_, last = setting_lines(settings_of(found), [lost])
    assert (last.rank, last.seeds, last.behind) == ("–", "0 of 1", "every run diverged")
    groups = error_groups(settings_of(found))
    assert all(bar.width <= 100 for group in groups for bar in group.bars)
    assert groups[0].one > 60, "the constant is seen beside an error of 9"
    assert ("1", groups[0].one) in groups[0].ticks, "the axis has it"
    assert [bar.is_cut for bar in groups[0].bars] == [False, False, True]


def test_of_many_settings_the_best_and_the_last_have_maps(facts: tuple[RunFacts, ...]) -> None:
    few = settings_of([with_errors(facts[0], "run", 0.3, 0.3, 0.3)]) * MAX_MAPPED
    assert drawn_in_maps(few) == few
    many = [Setting(name=str(n), runs=few[0].runs) for n in range(MAX_MAPPED + 2)]
    assert [one.name for one in drawn_in_maps(many)] == ["0", "1", "2", str(MAX_MAPPED + 1)]


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
    text = told(found)
    best = text["Which run is best?"]
    assert "a with a mean of 0.298 over 3 seeds (0.290 to 0.303)" in best
    assert "0.012 lower" in best, "of means, where the best seeds lie 0.018 apart"
    assert "Seeds leave it open" in best
    assert "Every seed of a lies below every seed of b." in best
    assert "0.30 of the constant" in text["Is the student good?"]
    assert "Error by teacher in a, the worst first" in text["Which teacher is neglected?"]
    (group, *_) = error_groups(settings)
    assert [bar.setting for bar in group.bars] == ["a", "b", "c"], "bars carry the settings' names"
    assert group.bars[0].text.startswith("0.298 ["), "and the mean over seeds, with its interval"
    assert [line.seeds for line in setting_lines(settings)] == ["3", "3", "3"]
    assert "seeds leave it open" in setting_lines(settings)[1].behind
    lost = Diverged(name="b,seed=3", setting="b", changes={}, step=1)
    assert [line.seeds for line in setting_lines(settings, [lost])] == ["3", "3 of 4", "3"]
    runs = [line.run for line in eval_lines(["loud"], settings) if line.kind == "patches"]
    assert runs[:4] == ["a,seed=0", "a,seed=1", "a,seed=2", "b,seed=1"], "in the order of ranks"


def test_a_diverged_run_is_told_with_its_step_and_what_it_sets(tmp_path: Path) -> None:
    run = tmp_path / "wild,seed=1"
    run.mkdir()
    (run / "config.json").write_text('{"config": {"lr": 9.0, "seed": 1}}')
    (run / "cell.json").write_text(
        '{"setting": "wild", "settings": {"lr": 9.0, "optimizer": "sgd", "seed": 1}}'
    )
    (run / "diverged.json").write_text('{"step": 57}')
    assert diverged_below(tmp_path) == [
        Diverged(
            name="wild,seed=1", setting="wild", changes={"lr": 9.0, "optimizer": "sgd"}, step=57
        )
    ]
