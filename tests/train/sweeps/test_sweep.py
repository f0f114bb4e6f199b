"""Many students from one pass."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import phistill.cache as store
from phistill.cache import ArrayReader, Cache
from phistill.compute.signals import Interrupted
from phistill.errors import Diverged, RunMismatch, UsageError
from phistill.stats import fit_stats
from phistill.train import (
    Progress,
    TrainConfig,
    cells,
    load_run,
    sweep,
    train,
)
from phistill.train import checkpoint as checkpoints
from phistill.train.loss.objective import TargetTransform
from phistill.train.metrics import read_metrics
from phistill.train.sweeps.cells import study
from phistill.train.sweeps.compare import compare
from phistill.train.sweeps.presets import METHODS
from phistill.train.sweeps.results import read_results

Config = Callable[..., TrainConfig]

GRID: dict[str, list[Any]] = {
    "normalizer": ["phi-s", "none"],
    "summary_loss": ["cosine", "none"],
    "seed": [0, 1],
}
DROPOUT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1}


def base(make_config: Config, **changes: Any) -> dict[str, Any]:
    values = make_config(
        num_steps=4, brightness=0.2, student_options=DROPOUT, memory_bytes=0, **changes
    ).to_dict()
    varying = {*GRID, "patch_loss", "accumulate", "lr"}
    return {key: value for key, value in values.items() if key not in varying}


def test_every_cell_is_bit_equal_to_a_run_of_its_own(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    grid = cells(base(make_config), GRID)
    result = sweep(fitted_cache, tmp_path / "sweep", grid)
    assert (result.num_cells, result.num_trained, result.num_passes) == (8, 8, 1)
    for cell in grid[::3]:
        train(fitted_cache, tmp_path / "alone" / cell.name, cell.config)
        ours = checkpoints.load(tmp_path / "sweep" / cell.name, 4)
        alone = checkpoints.load(tmp_path / "alone" / cell.name, 4)
        for name, value in alone.tensors.items():
            assert torch.equal(value, ours.tensors[name]), (cell.name, name)
        assert alone.facts["losses"] == ours.facts["losses"]


def test_a_staged_sweep_trains_the_same_students_from_the_near_disk(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    grid = cells(base(make_config, teachers=("a",)), {"seed": [0, 1]})
    plain = sweep(fitted_cache, tmp_path / "plain", grid)
    copied: list[int] = []
    staged = sweep(
        fitted_cache,
        tmp_path / "staged",
        grid,
        stage=tmp_path / "near",
        stage_progress=lambda done, total: copied.append(done),
    )
    assert copied
    (near,) = (tmp_path / "near").iterdir()
    assert store.open(near).teachers == ("a",)
    assert plain.table is not None
    assert staged.table is not None
    assert staged.table.read_text() == plain.table.read_text()
    near.rename(tmp_path / "away")  # a finished sweep reads nothing
    sweep(fitted_cache, tmp_path / "staged", grid, stage=tmp_path / "near")
    assert not near.exists()


def test_targets_are_normalised_once_for_students_that_want_them_alike(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = cells(
        base(make_config), {"seed": [0, 1], "normalizer": ["phi-s", "pca"], "summary_loss": ["mse"]}
    )
    num_calls = {"calls": 0}
    forward = TargetTransform.forward

    def counted(self: TargetTransform, x: torch.Tensor) -> torch.Tensor:
        num_calls["calls"] += 1
        return forward(self, x)

    monkeypatch.setattr(TargetTransform, "forward", counted)
    sweep(fitted_cache, tmp_path / "sweep", grid)
    assert num_calls["calls"] == 4 * 2 * 5  # steps x normalizers x targets, not x cells


def spoiling(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss that writes to its target."""
    loss = (x - y).square().mean((1, 2))
    y.zero_()
    return loss


def test_a_loss_that_writes_to_its_target_harms_no_other_student(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """Also beside a student that takes the batch in parts."""
    values = {**base(make_config), "patch_loss": f"{__name__}:spoiling"}
    grid = cells(
        values, {"seed": [0], "summary_loss": ["none"], "accumulate": [1, 2], "lr": [1e-3, 1e-2]}
    )
    sweep(fitted_cache, tmp_path / "sweep", grid)
    for cell in grid:
        train(fitted_cache, tmp_path / "alone" / cell.name, cell.config)
        ours = checkpoints.load(tmp_path / "sweep" / cell.name, 4)
        alone = checkpoints.load(tmp_path / "alone" / cell.name, 4)
        assert ours.facts["losses"] == alone.facts["losses"]


def not_finite(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().mean((1, 2)) * float("nan")


def test_a_cell_that_diverges_does_not_stop_the_others(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    grid = cells(base(make_config), {"patch_loss": ["mse", f"{__name__}:not_finite"]})
    for _ in range(2):
        with pytest.raises(Diverged, match=r"1 cell of 2 diverged: .*not_finite.*table\.md"):
            sweep(fitted_cache, tmp_path / "sweep", grid)
    assert checkpoints.steps(tmp_path / "sweep" / "patch_loss=mse") == [4]
    table = (tmp_path / "sweep" / "table.md").read_text("utf-8")
    assert "| patch_loss=mse |" in table
    assert f"Diverged at step 1, and not in the table: {grid[1].name}" in table
    train(fitted_cache, tmp_path / "alone", grid[0].config)
    ours = checkpoints.load(tmp_path / "sweep" / grid[0].name, 4).tensors
    alone = checkpoints.load(tmp_path / "alone", 4).tensors
    assert all(torch.equal(value, ours[name]) for name, value in alone.items())


def test_a_sweep_reads_each_row_once_for_all_cells(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = {"rows": 0}
    read = ArrayReader.read

    def counted(self: ArrayReader, rows: Any, *rest: Any, **named: Any) -> Any:
        num_read["rows"] += len(rows)
        return read(self, rows, *rest, **named)

    monkeypatch.setattr(ArrayReader, "read", counted)
    values = base(make_config, validate_rows=1)
    grid = cells(values, {"normalizer": ["phi-s"], "summary_loss": ["cosine"], "seed": [0]})
    sweep(fitted_cache, tmp_path / "one", grid)
    one, num_read["rows"] = num_read["rows"], 0
    sweep(fitted_cache, tmp_path / "two", cells(values, {**GRID, "summary_loss": ["cosine"]}))
    # Each cell still evaluates its own held-out rows at the end.
    steps = 4 * 8 * 6  # steps x batch x arrays
    assert num_read["rows"] - steps == 4 * (one - steps)


def test_a_stopped_sweep_goes_on_and_leaves_finished_cells_alone(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    grid = cells(base(make_config), {**GRID, "seed": [0]})

    def interrupt(name: str, progress: Progress) -> None:
        if progress.step == 2 and name == grid[1].name:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 2"):
        sweep(fitted_cache, tmp_path / "parts", grid, progress=interrupt)
    sweep(fitted_cache, tmp_path / "parts", grid)
    sweep(fitted_cache, tmp_path / "whole", grid)
    for cell in grid:
        one, two = (checkpoints.load(tmp_path / n / cell.name, 4) for n in ("parts", "whole"))
        assert all(torch.equal(v, two.tensors[k]) for k, v in one.tensors.items())
    again = sweep(fitted_cache, tmp_path / "parts", grid)
    assert (again.num_trained, again.num_passes) == (0, 0)


def test_a_changed_grid_is_refused_also_for_finished_cells(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    settings = {"normalizer": ["none"], "summary_loss": ["none"], "seed": [0]}
    sweep(fitted_cache, tmp_path / "sweep", cells(base(make_config), settings))
    changed = cells({**base(make_config), "weight_decay": 0.5}, {**settings, "seed": [1, 0]})
    with pytest.raises(RunMismatch, match=r"weight_decay: 0.02 -> 0.5"):
        sweep(fitted_cache, tmp_path / "sweep", changed)
    assert not (tmp_path / "sweep" / changed[0].name).exists()


def test_a_sweep_without_held_out_images_is_refused_before_it_trains(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=40, holdout=0.0)
    fit_stats(cache)
    with pytest.raises(UsageError, match=r"nothing to compare settings on.*--holdout"):
        sweep(cache, tmp_path / "sweep", cells(base(make_config), GRID))
    assert not (tmp_path / "sweep").exists()


def test_the_table_says_what_each_cell_scored(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    grid = cells(base(make_config), {"normalizer": ["phi-s", "none"], "seed": [0, 1]})
    result = sweep(fitted_cache, tmp_path / "sweep", grid)
    table = pq.read_table(tmp_path / "sweep" / "table.parquet").to_pylist()
    assert len(table) == 4 * 5
    assert {row["set_normalizer"] for row in table} == {'"phi-s"', '"none"'}
    assert result.table is not None
    with pytest.raises(UsageError, match=r"holds 4 of them; give one, such as .*normalizer="):
        load_run(result.path)
    text = result.table.read_text()
    assert "normalizer=phi-s | 2 |" in text
    assert "seed=" not in text


def test_of_several_processes_the_last_to_end_writes_the_table(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = cells(base(make_config), {"normalizer": ["phi-s", "none"]})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    first = sweep(fitted_cache, tmp_path / "sweep", grid)
    assert (first.num_trained, first.table) == (1, None)
    monkeypatch.setenv("RANK", "0")
    last = sweep(fitted_cache, tmp_path / "sweep", grid)
    assert last.num_trained == 1
    assert last.table is not None
    assert last.table.read_text().count("\n| normalizer=") == 2 * 2  # scores, and raw units


def test_the_table_is_over_all_that_lies_in_the_folder(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """A second file adds its cells to it, single ones by their names."""
    settings = base(make_config)
    sweep(fitted_cache, tmp_path / "sweep", cells(settings, {"normalizer": ["phi-s", "none"]}))
    single = [{"name": "PHI-S, AdaLoss", "balance": "adaloss"}]
    result = sweep(fitted_cache, tmp_path / "sweep", study({"base": settings, "cells": single}))
    assert result.num_trained == 1
    assert result.table is not None
    text = result.table.read_text("utf-8")
    for setting in ("normalizer=phi-s", "normalizer=none", "PHI-S, AdaLoss"):
        assert f"| {setting} | 1 |" in text
    assert "One seed" in text
    assert "with fewer than 30 no interval is given, and nothing is told apart" in text
    assert "in the teachers' own units" in text


def test_a_difference_that_images_show_is_no_tie(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """A student that learns and one that does not, three seeds each."""
    settings = {
        key: value
        for key, value in make_config(num_steps=60, batch_size=32, warmup=0).to_dict().items()
        if key not in ("lr", "seed", "min_lr")
    }
    grid = study(
        {
            "base": settings,
            "seeds": [0, 1, 2],
            "cells": [
                {"name": "good", "lr": 1e-2},
                {"name": "idle", "lr": 1e-7, "min_lr": 0.0},
            ],
        }
    )
    result = sweep(learnable_cache, tmp_path / "sweep", grid)
    assert result.table is not None
    ranked = {one.name: one for one in compare(read_results(tmp_path / "sweep"))}
    assert list(ranked) == ["good", "idle"]
    assert ranked["good"].behind is None
    idle = ranked["idle"]
    assert not idle.is_tied
    assert idle.behind is not None
    assert idle.behind.is_positive
    assert not any(figure.is_tied for figure in idle.figures.values())
    text = result.table.read_text("utf-8")
    assert "Not told from the best" not in text
    assert "One seed" not in text


def test_a_finished_sweep_and_a_finished_run_get_more_steps_when_asked_for(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    settings = base(make_config)
    grid = {"normalizer": ["phi-s", "none"]}
    sweep(fitted_cache, tmp_path / "sweep", cells(settings, grid))
    longer = cells({**settings, "num_steps": 7}, grid)
    with pytest.raises(RunMismatch, match=r"num_steps: 4 -> 7(.|\n)*--extend gives it more steps"):
        sweep(fitted_cache, tmp_path / "sweep", longer)
    for _ in range(2):
        result = sweep(fitted_cache, tmp_path / "sweep", longer, extend=True)
    assert result.num_trained == 0
    for cell in longer:
        run = tmp_path / "sweep" / cell.name
        assert checkpoints.steps(run) == [4, 7]
        assert [line["step"] for line in read_metrics(run, "train")] == list(range(1, 8))
        facts = json.loads((run / "config.json").read_text())
        assert (facts["num_steps"], facts["num_steps_before"]) == (7, [4])
        # As a run that was stopped there and asked for seven from the start would go on.
        assert read_metrics(run, "train")[-1]["lr"] == pytest.approx(1e-6)
        again = train(fitted_cache, run, cell.config)
        assert again.resumed_from == 7
    with pytest.raises(UsageError, match="a run of 7 steps; --extend cannot make it one of 5"):
        train(
            fitted_cache,
            tmp_path / "sweep" / longer[0].name,
            cells({**settings, "num_steps": 5}, grid)[0].config,
            extend=True,
        )


def test_the_papers_methods_are_trained_by_one_word(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    settings = {
        key: value
        for key, value in base(make_config).items()
        if key not in ("balance", "normalizer")
    }
    grid = study({"base": {**settings, "num_steps": 1}, "preset": "methods", "seeds": [0, 1]})
    assert len(grid) == 24
    result = sweep(fitted_cache, tmp_path / "sweep", grid)
    assert (result.num_trained, result.num_passes) == (24, 1)
    assert result.table is not None
    text = result.table.read_text("utf-8")
    for method in METHODS:
        assert f"| {method['name']} | 2 |" in text
