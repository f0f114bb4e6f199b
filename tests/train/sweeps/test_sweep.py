"""Many students from one pass."""

from __future__ import annotations

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
    read_grid,
    sweep,
    train,
)
from phistill.train import checkpoint as checkpoints
from phistill.train.evaluation import EvalRow
from phistill.train.loss.objective import TargetTransform
from phistill.train.sweeps.tables import figures, markdown

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
    assert f"Diverged, and not in the table: {grid[1].name}" in table
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
    assert last.table.read_text().count("normalizer=") == 2


def test_figures_are_means_with_intervals_and_ranks() -> None:
    grid = cells({}, {"lr": [0.1, 0.2, 0.3], "seed": [0, 1]})

    def line(value: float) -> EvalRow:
        return EvalRow(
            student="trained",
            teacher="a",
            kind="patches",
            num_rows=1,
            num_images=1,
            mse=1.0,
            baseline=1.0,
            cosine=0.0,
            constant_cosine=0.0,
            error=value,
            error_low=None,
            error_high=None,
        )

    scores = dict(zip((cell.name for cell in grid), (0.4, 0.6, 0.5, 0.5, 0.2, 0.2), strict=True))
    found = figures(grid, {name: [line(value)] for name, value in scores.items()})
    ranks = {setting: row["a/patches"].rank for setting, row in found.items()}
    assert ranks == {"lr=0.1": 2.5, "lr=0.2": 2.5, "lr=0.3": 1.0}
    first = found["lr=0.1"]["a/patches"]
    # t(0.975, 1) times the standard error of two values 0.2 apart, which is 0.1.
    assert first.half_interval == pytest.approx(1.2706)
    assert markdown(found).splitlines()[4].startswith("| lr=0.3 | 2 | 1.00 | 0.2000 ± 0.0000 (1)")


def test_a_grid_file_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("[base]\nnum_steps = 3\n[grid]\nseed = [0, 1]\nbetas = [[0.9, 0.99]]\n")
    found = read_grid(path)
    assert [cell.config.seed for cell in found] == [0, 1]
    assert found[0].name.startswith("seed=0,betas=~0.9,0.99~-")
    for text, message in (
        ("[grid]\nseed = 3\n", "must be a list"),
        ("[grid]\nsead = [3]\n", "Did you mean seed"),
        ("[other]\n", r"\[base\] and \[grid\]"),
        ("[base]\nseed = 1\n[grid]\nseed = [1]\n", "both base and grid"),
        ("seed = ", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_grid(path)
