"""Processes of one launch become ranks of one run, on whatever device."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from phistill.compute.ranks import joined
from phistill.errors import UsageError
from tests.compute.conftest import Machine
from tests.train.test_ranks import free_port

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}

SUM = """
import torch
from phistill.compute.ranks import joined

with joined("cpu") as ranks:
    print(ranks.rank, ranks.world, int(ranks.total(torch.tensor([ranks.rank + 1]))))
"""


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_of_either_launcher_are_ranks_of_one_run(launcher: str) -> None:
    names = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    }[launcher]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SUM],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
                **meeting,
                **dict(zip(names, (str(rank), "3", str(rank)), strict=True)),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    assert [one.communicate(timeout=120)[0].split() for one in processes] == [
        [str(rank), "3", "6"] for rank in range(3)
    ]


def test_a_process_alone_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.device) == (0, 1, torch.device("cpu"))
        assert not dist.is_initialized()


@pytest.mark.parametrize(("count", "index"), [(2, 1), (1, 0)])
def test_gpus_are_joined_by_nccl_with_their_device_and_a_time_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, count: int, index: int
) -> None:
    machine(cuda=count)
    asked: dict[str, Any] = {}

    signature = inspect.signature(dist.init_process_group)

    def init_process_group(*arguments: Any, **options: Any) -> None:
        asked.update(signature.bind(*arguments, **options).arguments)

    for name, value in {**TORCHRUN, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda device: device)
    with joined("auto") as ranks:
        assert ranks.device == torch.device("cuda", index)
    assert asked["backend"] == "cpu:gloo,cuda:nccl"
    assert asked["device_id"] == torch.device("cuda", index)
    assert asked["timeout"] >= timedelta(minutes=10)


def test_more_processes_than_gpus_are_refused_with_both_numbers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nccl would say that a device is there twice."""
    machine(cuda=2)
    for name, value in {**TORCHRUN, "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda device: device)
    with (
        pytest.raises(UsageError, match=r"4 processes of torchrun .* sees 2 CUDA devices"),
        joined("auto"),
    ):
        pass


def test_several_processes_do_not_share_one_gpu_by_its_index(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(cuda=2)
    for name, value in {**TORCHRUN, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match="'cuda:0' is one device, and process 1 of 2 of torchrun"),
        joined("cuda:0"),
    ):
        pass


ALONE = """
import signal
from phistill.compute import ranks
ranks.PATIENCE_S = 0.5
signal.signal(signal.SIGTERM, lambda number, frame: None)  # what Python would do, if it could
with ranks.joined("cpu"):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_others_who_never_come_says_so_and_ends_on_a_signal(
    number: int,
) -> None:
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE],
        env={**os.environ, **step, **place},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "c10d" not in line)  # torch's own words
        assert "process 0 of 4 of srun waits for the others" in said
        assert "unset SLURM_STEP_NUM_TASKS" in said
        process.send_signal(number)
        assert process.wait(10) == 128 + number
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
