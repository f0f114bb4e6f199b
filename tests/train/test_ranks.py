"""Two gloo ranks learn what one process learns."""

from __future__ import annotations

import json
import os
import shutil
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

import phistill.cache as store
from phistill.cache import Cache
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics
from tests.conftest import rename_images

Config = Callable[..., TrainConfig]

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from phistill.compute.signals import Interrupted
from phistill.train import TrainConfig, train
from phistill.train import checkpoint
from phistill.train.step.state import TrainState

cache, out, settings, kill_at = sys.argv[1:]
train_step = TrainState.train_step

def step_or_die(state, batch):
    if batch.step == int(kill_at):
        while not checkpoint.steps(Path(out)):  # a thread writes them
            time.sleep(0.01)
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
    """Ranks of one run; each kills itself before step ``kill_at``."""
    settings = json.dumps(config.to_dict())
    return launch(RANK, [str(cache.path), str(out), settings, str(kill_at)], world)


def launch(
    script: str, arguments: list[str], world: int, *, port: str = "", rank: int | None = None
) -> list[subprocess.Popen[str]]:
    """The processes torchrun would start, or one of them."""
    port, threads = port or free_port(), {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
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
        for rank in (range(world) if rank is None else [rank])
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, 130, 143), errors
    return [process.returncode for process in processes]


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run, "train")]


DIES = """
import errno, json, os, signal, sys
from pathlib import Path
from phistill.errors import PhistillError
from phistill.train import TrainConfig, train
from phistill.train.step.state import TrainState

cache, out, settings = sys.argv[1:]
train_step = TrainState.train_step

def step_or_die(state, batch):
    if batch.step == 3 and os.environ["RANK"] == "{rank}":
        {first_step}
    return train_step(state, batch)

TrainState.train_step = step_or_die
try:
    train(cache, out, TrainConfig.from_dict(json.loads(settings)))
except PhistillError as error:
    sys.exit(str(error))
"""
"""A rank meets something before the fourth step; what is refused is one line."""

FULL_DISK = """
        from phistill.cache.storage import publish
        def write_all(descriptor, buffers):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish.write_all = write_all
"""

MANY = """
import json, os, sys
import torch.distributed as dist
from phistill.train import TrainConfig, train

cache, out, configs = sys.argv[1:]
dist.init_process_group("gloo")
for name, settings in json.loads(configs).items():
    train(cache, os.path.join(out, name), TrainConfig.from_dict(settings))
dist.destroy_process_group()  # its threads must not outlive the interpreter
"""
"""Several runs, one after the other, by the same ranks."""


@pytest.mark.guarantee(
    "G26", "1 to 5 gloo ranks, accumulate 1 and 4, batches that divide and do not: 1e-6"
)
@pytest.mark.parametrize("world", [2, 3, 4, 5])
def test_any_number_of_ranks_and_parts_gives_the_loss_curve_of_one(
    world: int, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """Sizes that they divide and sizes that they do not, and a last part without a row."""
    configs = {
        f"{size}-{parts}-{partition}": make_config(
            num_steps=8, batch_size=size, accumulate=parts, partition=partition
        )
        for size, parts, partition in [
            (12, 1, "all"), (12, 4, "all"), (10, 1, "all"), (10, 4, "one"), (7, 1, "one"),
            (5, 4, "all"),
        ]
    }  # fmt: skip
    settings = json.dumps({name: config.to_dict() for name, config in configs.items()})
    assert finish(launch(MANY, [str(fitted_cache.path), str(tmp_path), settings], world)) == (
        [0] * world
    )
    for name, config in configs.items():
        train(fitted_cache, tmp_path / "one" / name, config)
        alone = losses(tmp_path / "one" / name)
        assert len(alone) == 8
        for step, (one, many) in enumerate(zip(alone, losses(tmp_path / name), strict=True)):
            # Gradients are float32 sums in another order; AdamW's first steps turn that into 1e-6.
            assert one == pytest.approx(many, rel=1e-6, abs=1e-6), (name, step)


def test_a_batch_with_fewer_rows_than_ranks_is_refused(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    for process in start(fitted_cache, tmp_path / "run", make_config(batch_size=1), 2):
        _, errors = process.communicate(timeout=300)
        assert "batch_size=1 has no row for each of 2 processes" in errors
    assert not (tmp_path / "run").exists()


def each(scripted: list[list[str]]) -> list[subprocess.Popen[str]]:
    """A rank for each list of arguments."""
    port = free_port()
    return [
        launch(RANK, arguments, len(scripted), port=port, rank=rank)[0]
        for rank, arguments in enumerate(scripted)
    ]


@pytest.mark.guarantee("G27", "ranks with run folders of their own go on from the first rank's")
def test_ranks_without_a_shared_folder_go_on_from_the_checkpoint_of_the_first(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """Also where the other's folder holds a checkpoint of a run that got farther."""
    config = make_config(checkpoint_every=5, num_steps=12)
    train(fitted_cache, tmp_path / "whole", config)
    train(fitted_cache, tmp_path / "second", config)
    settings, cache = json.dumps(config.to_dict()), str(fitted_cache.path)
    outs = [str(tmp_path / name) for name in ("first", "second")]
    for process in each([[cache, out, settings, "8"] for out in outs]):
        process.communicate(timeout=300)
    assert checkpoints.steps(tmp_path / "first") == [5]
    assert finish(each([[cache, out, settings, "-1"] for out in outs])) == [0, 0]
    one, two = losses(tmp_path / "whole"), losses(tmp_path / "first")
    assert len(one) == len(two) == 12
    for alone, joined in zip(one, two, strict=True):
        assert alone == pytest.approx(joined, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("what", ["setting lr", "images_digest", "cannot be opened"])
def test_ranks_that_would_not_train_one_student_are_refused_before_the_first_step(
    what: str,
    fitted_cache: Cache,
    make_cache: Callable[..., Cache],
    make_config: Config,
    tmp_path: Path,
) -> None:
    config = make_config(num_steps=2)
    other, second = config, str(fitted_cache.path)
    if what == "setting lr":
        other = make_config(num_steps=2, lr=0.5)
    elif what == "images_digest":
        copy = tmp_path / "copy.cache"
        shutil.copytree(fitted_cache.path, copy)
        rename_images(store.open(copy))
        fit_stats(store.open(copy))
        second = str(copy)
    else:
        second = str(tmp_path / "nothing.cache")
    processes = each(
        [
            [str(fitted_cache.path), str(tmp_path / "run"), json.dumps(config.to_dict()), "-1"],
            [second, str(tmp_path / "run"), json.dumps(other.to_dict()), "-1"],
        ]
    )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    if what == "cannot be opened":
        assert "process 1 of 2 stopped" in errors[0]
    else:
        assert all(what in text and "process 1 on" in text for text in errors), errors
    assert not (tmp_path / "run").exists()


def test_students_with_parameters_that_nothing_reads_train_on_several_ranks(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    config = make_config(
        student="convnext_atto", student_options=options, num_steps=4, image_size=32
    )
    assert finish(start(fitted_cache, tmp_path / "two", config, 2)) == [0, 0]
    train(fitted_cache, tmp_path / "one", config)
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)  # sums of a convolution's many terms


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


def test_a_rank_that_lost_another_says_so_in_one_line(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    """One is killed; or the first cannot write its checkpoint, and says that itself."""
    settings = json.dumps(make_config(num_steps=100_000, checkpoint_every=5).to_dict())
    lost = "has lost another process of this run"
    for first_step, dies in (("os.kill(os.getpid(), signal.SIGKILL)", 1), (FULL_DISK, 0)):
        script = DIES.format(rank=dies, first_step=first_step)
        out = tmp_path / str(dies)
        processes = launch(script, [str(fitted_cache.path), str(out), settings], 2)
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert "Traceback" not in "".join(errors), errors
        assert lost in errors[1 - dies], errors
        assert lost not in errors[dies], errors
        assert [process.returncode for process in processes][1 - dies] == 1
    assert "could not be written" in errors[0]
    assert "No space left on device" in errors[0]


def test_ranks_save_together_when_the_clock_or_the_score_of_the_first_asks_for_it(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    often = {"checkpoint_minutes": 1e-6, "log_every": 3, "keep_checkpoints": 9}
    scored = {"checkpoint_minutes": 0.0, "validate_every": 2, "lr": 3e-2, "warmup": 0}
    for name, changes, wanted in (("clock", often, [3, 6, 9, 10]), ("score", scored, None)):
        config = make_config(num_steps=10, **changes)
        assert finish(start(learnable_cache, tmp_path / name, config, 2)) == [0, 0]
        found = checkpoints.steps(tmp_path / name)
        assert found == (wanted or found)
        assert len(found) > 1


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
