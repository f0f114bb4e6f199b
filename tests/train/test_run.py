"""The whole of a run on small caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.errors import CorruptCache, LockHeld, RunMismatch, UsageError
from phistill.report.tables import evaluation_table
from phistill.stats import fit_stats
from phistill.train import Progress, TrainConfig, evaluate, load_run, train
from phistill.train.data.plan import make_plan
from phistill.train.metrics import read_metrics

Config = Callable[..., TrainConfig]


def test_a_run_leaves_a_student_that_answers_for_every_teacher(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    result = train(fitted_cache, tmp_path / "run", make_config(num_steps=3))
    assert result.num_steps == 3
    assert result.in_memory
    student = load_run(tmp_path / "run")
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    found = student.predict(pixels)
    shapes = {
        f"{name}/{kind}": tuple(value.shape)
        for name, kinds in found.items()
        for kind, value in kinds.items()
    }
    assert shapes == {
        "a/patches": (2, 4, 12),
        "a/summary": (2, 6),
        "b/patches": (2, 16, 7),
        "c/patches": (2, 9, 8),
        "c/summary": (2, 5),
    }
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [1, 2, 3]


def test_a_student_learns_what_can_be_learnt(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=120, batch_size=32, lr=1e-2, log_every=100)
    train(learnable_cache, tmp_path / "run", config)
    lines = evaluate(tmp_path / "run")
    unexplained = {
        (line.student, line.teacher): line.unexplained
        for line in lines
        if line.unexplained is not None
    }
    # A linear map of the pixels: far below 1 after 120 steps, above it before the first.
    assert unexplained["trained", "a"] < 0.3
    assert unexplained["untrained", "a"] > 0.9


def test_the_same_config_gives_the_same_weights(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    first = train(fitted_cache, tmp_path / "one", make_config(num_steps=4))
    second = train(fitted_cache, tmp_path / "two", make_config(num_steps=4))
    assert first.losses == second.losses
    assert first.checkpoint.read_bytes() == second.checkpoint.read_bytes()


def test_another_config_in_the_same_folder_is_refused_with_the_difference(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=2))
    with pytest.raises(RunMismatch, match=r"lr: 0.001 -> 0.5"):
        train(fitted_cache, tmp_path / "run", make_config(num_steps=2, lr=0.5))
    again = train(fitted_cache, tmp_path / "run", make_config(num_steps=2, log_every=7))
    assert again.resumed_from == 2


def test_when_nothing_is_held_out_the_run_says_so(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=40, holdout=0.0)
    fit_stats(cache)
    with pytest.warns(UserWarning, match=r"holds no image out.*--split train.*--holdout"):
        train(cache, tmp_path / "run", make_config(num_steps=1))


def test_a_single_row_has_no_interval(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    (one, *_) = evaluate(tmp_path / "run", max_rows=1)
    assert (one.num_images, one.error_low, one.error_high) == (1, None, None)
    assert " - " in evaluation_table([one])


def test_a_damaged_shard_stops_a_run_that_goes_on_when_it_is_mended(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=64, shard_rows=8)
    fit_stats(cache)
    config = make_config(num_steps=7, memory_bytes=0, loader_workers=0)
    whole = train(cache, tmp_path / "whole", config)
    first, number = max((_first_step_with_shard(cache, config, n), n) for n in range(8))
    assert first, "a run that has learnt nothing saves nothing"
    shard = cache.path / "teachers" / "a" / "patches" / "c" / str(number) / "0" / "0"
    good = shard.read_bytes()
    shard.write_bytes(bytes(byte ^ 1 for byte in good[:-200]) + good[-200:])
    with pytest.raises(CorruptCache, match=_WHERE.format(shard=number, step=first)):
        train(store.open(cache.path), tmp_path / "run", config)
    shard.write_bytes(good)
    again = train(store.open(cache.path), tmp_path / "run", config)
    assert again.resumed_from == first
    assert again.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_a_cache_that_goes_away_costs_no_step(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    """Open shards can still be read; the validation at the end needs others."""
    cache = make_cache(num_rows=64, shard_rows=8)
    fit_stats(cache)

    def remove(progress: Progress) -> None:
        if progress.step == 3:
            cache.path.rename(tmp_path / "away.cache")

    config = make_config(num_steps=3, order="none", memory_bytes=0, loader_workers=0)
    with pytest.raises(CorruptCache, match=r"committed but missing.*saved after step 3"):
        train(cache, tmp_path / "run", config, progress=remove)
    (tmp_path / "away.cache").rename(cache.path)
    assert train(cache, tmp_path / "run", config).resumed_from == 3


_WHERE = (
    r"teacher a, patches: row \d+ \(shard {shard}, .*phistill verify.*--repair.*"
    r"saved after step {step}:"
)


def _first_step_with_shard(cache: Cache, config: TrainConfig, shard: int) -> int:
    plan = make_plan(open_caches(cache), config)
    return next((step for step in range(7) if shard in plan.step(step) // 8), 0)


def test_a_loss_of_summaries_needs_a_teacher_with_one(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(teachers=("b",), summary_loss="balanced-angle")
    with pytest.raises(UsageError, match="none of b has a summary"):
        train(fitted_cache, tmp_path / "run", config)
    train(fitted_cache, tmp_path / "run", make_config(teachers=("b",), num_steps=1))


def test_a_run_folder_has_one_trainer(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    def again(_: Progress) -> None:
        with pytest.raises(LockHeld, match=r"is being trained by process \d+ on .*another --out"):
            train(fitted_cache, tmp_path / "run", make_config(num_steps=1))

    train(fitted_cache, tmp_path / "run", make_config(num_steps=1), progress=again)


def test_what_a_kill_before_the_first_step_leaves_is_no_obstacle(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "run" / "config.json.partial").write_text("{")
    with pytest.raises(UsageError, match="not empty and not a run"):
        train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    checkpoints.rmdir()
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    orphan = checkpoints / "00000000.safetensors"
    orphan.write_bytes(b"")
    (checkpoints / "00000001.json").unlink()
    train(fitted_cache, tmp_path / "run", make_config(num_steps=1))
    assert not orphan.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": "phis"}, "phi-s"),
        ({"teachers": ("dino",)}, "it has a, b, c"),
        ({"student": "vit_tiny_patch16_244"}, "Did you mean vit_tiny_patch16_224"),
        ({"summary_from": "class-per-teacher", "student_options": {"reg_tokens": 0}}, "prefix"),
        ({"labels": ("nothing",)}, "leave no training row"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    changes: dict[str, object],
    message: str,
    fitted_cache: Cache,
    make_config: Config,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        train(fitted_cache, tmp_path / "run", make_config(**changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_as_it_was(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="not empty and not a run"):
        train(fitted_cache, tmp_path, make_config())
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_in_the_place_of_the_run_folder_is_refused(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a run folder"):
        train(fitted_cache, tmp_path / "run", make_config())
