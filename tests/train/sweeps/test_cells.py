"""What a sweep's file may say, and what its mistakes are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from phistill.errors import UsageError
from phistill.stats.normalizer.methods import METHODS as NORMALIZERS
from phistill.train import read_grid
from phistill.train.config import PATCH_LOSSES
from phistill.train.sweeps.cells import study
from phistill.train.sweeps.presets import METHODS


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("[base]\nnum_steps = 3\n[grid]\nseed = [0, 1]\nbetas = [[0.9, 0.99]]\n")
    found = read_grid(path)
    assert [cell.config.seed for cell in found] == [0, 1]
    assert found[0].name.startswith("seed=0,betas=~0.9,0.99~-")


def test_grids_single_cells_presets_and_seeds_add_up(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        """
        seeds = [0, 1]
        [base]
        num_steps = 3
        [grid]
        lr = [1e-3, 1e-2]
        [[grids]]
        normalizer = ["phi-s", "none"]
        weight_decay = [0.0, 0.1]
        [[grids]]
        head = ["mlp", "linear"]
        [[cells]]
        name = "long"
        num_steps = 9
        [[cells]]
        lr = 0.5
        seed = 7
        """
    )
    found = read_grid(path)
    # mlp is the default, as is the first lr: those two cells of the first and third grid are one.
    assert len(found) == 2 * (2 + 4 + 2 + 1 - 1) + 1
    assert [cell.name for cell in found[-3:]] == ["long,seed=0", "long,seed=1", "lr=0.5,seed=7"]
    assert [cell.config.num_steps for cell in found[-3:]] == [9, 9, 3]
    assert {cell.setting for cell in found[-3:]} == {"long", "lr=0.5"}
    assert {cell.config.seed for cell in found[:4]} == {0, 1}
    # The default of all settings is among the methods, and a learning rate of the grid.
    assert len(read_grid(path, preset="methods", seeds=[3])) == 8 + 1 + 12 - 1


def test_names_that_differ_in_case_only_are_two_folders_everywhere() -> None:
    found = study({"cells": [{"name": "A", "lr": 0.1}, {"name": "a", "lr": 0.2}]})
    names = {cell.name.lower() for cell in found}
    assert len(names) == 2


def test_without_anything_that_varies_there_is_one_cell() -> None:
    (only,) = study({"base": {"num_steps": 2}})
    assert (only.name, only.setting) == ("only", "all")


def test_the_preset_holds_the_methods_of_the_paper() -> None:
    assert len(METHODS) == 12
    assert {method["normalizer"] for method in METHODS} == {*NORMALIZERS} - {"isotropic"}
    assert {method["patch_loss"] for method in METHODS} == {*PATCH_LOSSES}
    assert len(study({"preset": "methods"})) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nseed = 3\n", "must be a list"),
        ("[grid]\nsead = [3]\n", "Did you mean seed"),
        ("[[grid]]\nseed = [3]\n", r"write \[grid\].*Several grids are \[\[grids\]\]"),
        ("[grids]\nseed = [3]\n", r"write \[\[grids\]\]"),
        ("[cells]\nseed = 3\n", r"write \[\[cells\]\]"),
        ("cells = [1]\n", r"write \[\[cells\]\]"),
        ("[[base]]\nseed = 3\n", r"write \[base\]"),
        ("grid = 3\n", r"write \[grid\]"),
        ("lr = 0.1\n", r"'lr' is a setting; write it below \[base\]"),
        ("[other]\n", r"\[base\] and \[grid\]"),
        ("[gird]\nseed = [1]\n", "Did you mean grid"),
        ("[base]\nseed = 1\n[grid]\nseed = [1]\n", "both base and grid"),
        ("[grid]\nseed = [1, 1]\n", "lists a value twice"),
        ("seeds = 3\n", "must be a list of whole numbers"),
        ("seeds = [true]\n", "must be a list of whole numbers"),
        ('preset = "method"\n', "Did you mean methods"),
        ("preset = 3\n", "must be a text"),
        ("[[cells]]\nname = 3\n", "must be a text"),
        ('[[cells]]\nname = "a"\n[[cells]]\nname = "a"\nlr = 1\n', "two cells are called 'a'"),
        ("seed = ", "not TOML"),
    ],
)
def test_a_mistake_is_named_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_grid(path)
    assert "\n" not in str(caught.value)
