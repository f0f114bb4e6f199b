"""Two gloo ranks learn what one process learns."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phistill.cache import Cache
from phistill.train import TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics

Config = Callable[..., TrainConfig]

RANK = """
import json, os, signal, sys
from phistill.compute.signals import Interrupted
from phistill.train import TrainConfig, train
from phistill.train.state import TrainState

cache, out, settings, kill_at = sys.argv[1:]
train_step = TrainState.train_step

def step_or_die(state, batch):
    if batch.step == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(state, batch)

TrainState.train_step = step_or_die
try:
    train(cache, out, TrainConfig.from_dict(json.loads(settings)))
except Interrupted as error:
    sys.exit(128 + error.signal_number)
"""


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def start(
    cache: Cache, out: Path, config: TrainConfig, world: int, kill_at: int = -1
) -> list[subprocess.Popen[str]]:
    """The processes torchrun would start; each kills itself before step ``kill_at``."""
    port, threads = free_port(), {"OMP_NUM_THREADS": "1"}
    arguments = [str(cache.path), str(out), json.dumps(config.to_dict()), str(kill_at)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *arguments],
            env={
                **os.environ,
                **threads,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, 130, 143), errors
    return [process.returncode for process in processes]


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run, "train")]


SETTINGS: list[dict[str, Any]] = [
    {"balance": "adaloss", "brightness": 0.3, "noise": 0.1},
    {"partition": "one", "accumulate": 2, "ema_decay": 0.9},
]


@pytest.mark.parametrize("changes", SETTINGS)
def test_two_ranks_give_the_loss_curve_of_one(
    changes: dict[str, Any], fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(**changes)
    train(fitted_cache, tmp_path / "one", config)
    assert finish(start(fitted_cache, tmp_path / "two", config, 2)) == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    for step, (alone, joined) in enumerate(zip(one, two, strict=True)):
        # Gradients are float32 sums in another order; AdamW's first steps turn that into 1e-6.
        assert alone == pytest.approx(joined, rel=1e-6, abs=1e-6), step
    assert (
        checkpoints.load(tmp_path / "two", 20).facts["order_digest"]
        == (checkpoints.load(tmp_path / "one", 20).facts["order_digest"])
    )


def test_two_killed_ranks_go_on_with_the_same_losses(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """With dropout, whose draws differ between ranks."""
    dropout = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.3}
    config = make_config(student_options=dropout, checkpoint_every=5, num_steps=16)
    assert finish(start(fitted_cache, tmp_path / "whole", config, 2)) == [0, 0]
    processes = start(fitted_cache, tmp_path / "parts", config, 2, kill_at=8)
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert checkpoints.steps(tmp_path / "parts") == [5]
    assert finish(start(fitted_cache, tmp_path / "parts", config, 2)) == [0, 0]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, two = (checkpoints.load(tmp_path / name, 16) for name in ("whole", "parts"))
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())
    assert not torch.equal(one.tensors["rng/torch"], one.tensors["rng/torch/1"])


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=100_000)
    processes = start(fitted_cache, tmp_path / "run", config, 2)
    while not losses(tmp_path / "run") and processes[1].poll() is None:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    assert finish(processes) == [143, 143]
    (step,) = checkpoints.steps(tmp_path / "run")
    assert 0 < step < 100_000
