"""Steps that do not fit into memory are cut, or say which setting makes them smaller."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phistill.cache import Cache
from phistill.compute import memory
from phistill.errors import OutOfMemory
from phistill.train import TrainConfig, train
from phistill.train.metrics import read_metrics

Config = Callable[..., TrainConfig]


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run, "train")]


@pytest.fixture
def little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 256 kB left: the tiny student takes 83 kB a row."""
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 256 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")


def test_a_step_is_cut_into_parts_that_fit_with_the_same_losses(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = make_config(num_steps=6)
    train(fitted_cache, tmp_path / "whole", config)
    request.getfixturevalue("little_memory")
    with pytest.warns(UserWarning, match=r"A step of 8 rows takes .* it is taken in \d parts"):
        train(fitted_cache, tmp_path / "cut", config)
    for one, two in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)  # float32 sums in another order


@pytest.mark.usefixtures("little_memory")
def test_what_was_asked_for_and_batch_norm_are_left_whole(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(fitted_cache, tmp_path / "asked", make_config(num_steps=1, accumulate=1))
        convolutions = make_config(
            num_steps=1, student="resnet10t", student_options={}, image_size=32
        )
        train(fitted_cache, tmp_path / "norm", convolutions)


def too_large(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.empty(2**50).sum() + (x - y).square().mean((1, 2))


def test_running_out_of_memory_names_the_setting_and_the_run_goes_on_with_it(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"num_steps": 2, "patch_loss": f"{__name__}:too_large"}
    with pytest.raises(OutOfMemory, match=r"batch_size=8 in 1 part .*--set accumulate=2"):
        train(fitted_cache, tmp_path / "run", make_config(**changes))
    globals()["too_large"] = lambda x, y: (x - y).square().mean((1, 2))
    train(fitted_cache, tmp_path / "run", make_config(accumulate=2, **changes))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(error: Exception) -> None:
    assert memory.is_out_of_memory(error)
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.is_out_of_memory(OSError("out of memory"))


def test_a_job_s_limit_counts_where_the_machine_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    whole = memory.free_bytes(device)
    for name, text in (
        ("memory.max", "3000000\n"),
        ("memory.current", "2500000\n"),
        ("memory.stat", "anon 1\ninactive_file 400000\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes(device) == 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory.free_bytes(device) or 0) > 900_000
    assert (whole or 0) > 900_000
