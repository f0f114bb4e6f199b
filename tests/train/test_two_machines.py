"""Two machines with a run folder and a copy of the cache of their own learn what one learns, or
refuse; a rank that is killed costs nothing but time. (G27)"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from phistill.cache import Cache
from phistill.train import TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics
from tests.two_machines import Machine, joined_machines

Config = Callable[..., TrainConfig]
Machines = tuple[Machine, Machine]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
]

RANK = """
import json, os, signal, sys
from phistill.train import TrainConfig, train
from phistill.train.step.state import TrainState

cache, out, settings, kill_at = sys.argv[1:]
train_step = TrainState.train_step

def step_or_die(state, batch):
    if batch.step == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(state, batch)

TrainState.train_step = step_or_die
train(cache, out, TrainConfig.from_dict(json.loads(settings)))
"""


@pytest.fixture
def machines() -> Iterator[Machines]:
    with joined_machines() as pair:
        yield pair


def run_on_both(
    machines: Machines, cache: Cache, home: Path, config: TrainConfig, *, killed: int = -1
) -> list[tuple[int, str]]:
    """Exit code and messages of both ranks; rank 1 kills itself before step ``killed``."""
    processes: list[subprocess.Popen[str]] = []
    for machine in machines:
        own = home / f"machine{machine.rank}"
        if not own.exists():
            shutil.copytree(cache.path, own / "my.cache")
        dies = killed if machine.rank else -1
        arguments = [str(own / "my.cache"), str(own / "run"), json.dumps(config.to_dict())]
        processes.append(machine.start([sys.executable, "-c", RANK, *arguments, str(dies)]))
    ended = []
    try:
        for process in reversed(processes):  # the killed one first: the other waits for it
            if killed >= 0 and process is processes[0]:
                process.kill()
            _, errors = process.communicate(timeout=120)
            ended.append((process.returncode, errors))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ended[::-1]


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run, "train")]


@pytest.mark.guarantee("G27", "two namespaces with separate folders: the curve of one, to 1e-6")
def test_two_machines_that_share_no_folder_learn_what_one_learns(
    machines: Machines, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(brightness=0.3)
    train(fitted_cache, tmp_path / "one", config)
    ended = run_on_both(machines, fitted_cache, tmp_path, config)
    assert [code for code, _ in ended] == [0, 0], ended
    one, two = losses(tmp_path / "one"), losses(tmp_path / "machine0/run")
    assert len(one) == len(two) == 20
    for step, (alone, joined) in enumerate(zip(one, two, strict=True)):
        # Gradients are float32 sums in another order; AdamW's first steps turn that into 1e-6.
        assert alone == pytest.approx(joined, rel=1e-6, abs=1e-6), step


@pytest.mark.guarantee("G27", "a rank killed, all started again: the uninterrupted curve, bitwise")
def test_a_rank_killed_in_the_middle_and_everything_started_again_gives_the_same_curve(
    machines: Machines, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """The second machine never had a checkpoint in its own folder: only the first rank writes."""
    config = make_config(checkpoint_every=5, num_steps=16)
    ended = run_on_both(machines, fitted_cache, tmp_path / "whole", config)
    assert [code for code, _ in ended] == [0, 0], ended
    ended = run_on_both(machines, fitted_cache, tmp_path / "parts", config, killed=8)
    assert ended[1][0] == -signal.SIGKILL
    assert checkpoints.steps(tmp_path / "parts/machine0/run") == [5]
    ended = run_on_both(machines, fitted_cache, tmp_path / "parts", config)
    assert [code for code, _ in ended] == [0, 0], ended
    whole, parts = (tmp_path / name / "machine0/run" for name in ("whole", "parts"))
    assert losses(parts) == losses(whole)
    one, two = (checkpoints.load(run, 16).tensors for run in (whole, parts))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_machine_with_a_checkpoint_of_its_own_does_not_go_on_from_it_alone(
    machines: Machines, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """The folders disagree: the second has steps of an earlier run. Refused, or what one learns."""
    config = make_config(checkpoint_every=5, num_steps=16)
    train(fitted_cache, tmp_path / "one", config)
    shutil.copytree(fitted_cache.path, tmp_path / "machine1/my.cache")
    train(fitted_cache, tmp_path / "machine1/run", make_config(checkpoint_every=5, num_steps=10))
    shutil.copytree(fitted_cache.path, tmp_path / "machine0/my.cache")
    ended = run_on_both(machines, fitted_cache, tmp_path, config)
    if any(code for code, _ in ended):
        assert any("RunMismatch" in errors or "UsageError" in errors for _, errors in ended), ended
        return
    one, two = losses(tmp_path / "one"), losses(tmp_path / "machine0/run")
    assert len(one) == len(two)
    for alone, joined in zip(one, two, strict=True):
        assert alone == pytest.approx(joined, rel=1e-6, abs=1e-6)
