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

from phistill.cache import Cache
from phistill.train import TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics

Config = Callable[..., TrainConfig]

RANK = """
import json, sys
from phistill.train import Interrupted, TrainConfig, train

cache, out, settings = sys.argv[1:]
try:
    train(cache, out, TrainConfig.from_dict(json.loads(settings)))
except Interrupted as error:
    sys.exit(128 + error.signal_number)
"""


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def start(cache: Cache, out: Path, config: TrainConfig, world: int) -> list[subprocess.Popen[str]]:
    """The processes torchrun would start."""
    port, threads = free_port(), {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(cache.path), str(out), json.dumps(config.to_dict())],
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
