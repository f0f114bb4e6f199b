"""Runs that are stopped, killed or damaged, and go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phistill.cache import Cache
from phistill.compute.signals import Interrupted
from phistill.errors import CorruptCheckpoint, RunMismatch
from phistill.stats import fit_stats
from phistill.train import Progress, TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics
from tests.conftest import rename_images

Config = Callable[..., TrainConfig]

EVERYTHING: dict[str, Any] = {
    "student_options": {
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "proj_drop_rate": 0.1,
        "drop_path_rate": 0.1,
    },
    "balance": "adaloss",
    "ema_decay": 0.9,
    "brightness": 0.3,
    "noise": 0.1,
    "accumulate": 2,
    "crop_min": 0.5,
    "checkpoint_every": 3,
}
"""Whatever carries state or draws random numbers."""


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return tell


def assert_same_run(one: Path, two: Path, step: int) -> None:
    """Same tensors bit for bit, same losses at every step."""
    first, second = checkpoints.load(one, step), checkpoints.load(two, step)
    assert first.tensors.keys() == second.tensors.keys()
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name]), name
    assert first.facts["state"] == second.facts["state"]
    losses = [[line["losses"] for line in read_metrics(run, "train")] for run in (one, two)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_an_interrupted_run_ends_in_the_same_bits(
    workers: int, optimizer: str, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        loader_workers=workers, memory_bytes=0, num_steps=12, optimizer=optimizer, **EVERYTHING
    )
    train(fitted_cache, tmp_path / "whole", config)
    with pytest.raises(Interrupted, match="stopped after step 7") as caught:
        train(fitted_cache, tmp_path / "parts", config, progress=interrupt_at(7))
    assert caught.value.signal_number == signal.SIGINT
    assert train(fitted_cache, tmp_path / "parts", config).resumed_from == 7
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 12)


KILLS = 20 if os.environ.get("PHISTILL_FULL") else 4
"""Guarantee G17 asks for 20: PHISTILL_FULL=1."""

LAB = textwrap.dedent("""
    import json, os, signal, sys
    import phistill.train.trainer as loop
    from phistill.train import TrainConfig

    cache, out, settings, kills = sys.argv[1:]
    config = TrainConfig.from_dict(json.loads(settings))

    def trial(step):
        def tell(progress):
            if progress.step >= step:
                os.kill(os.getpid(), signal.SIGKILL)
        loop.train(cache, out, config, progress=tell)

    # Each trial is a fork of this process, which itself never ran a kernel.
    for step in json.loads(kills):
        child = os.fork()
        if not child:
            trial(step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    loop.train(cache, out, config)
""")


@pytest.mark.guarantee(
    "G17", f"SIGKILL at {KILLS} random steps: losses, rows and weights bit-identical"
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_steps_ends_in_the_same_bits(
    workers: int, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    num_steps = max(15, 2 * KILLS)
    config = make_config(loader_workers=workers, memory_bytes=0, num_steps=num_steps, **EVERYTHING)
    train(fitted_cache, tmp_path / "whole", config)
    steps = sorted(random.Random(workers).sample(range(1, num_steps + 1), KILLS))
    arguments = [
        str(fitted_cache.path),
        str(tmp_path / "killed"),
        json.dumps(config.to_dict()),
        json.dumps(steps),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", LAB, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed", num_steps)
    assert not list((tmp_path / "killed").rglob("*.partial"))


def two_checkpoints(cache: Cache, config: TrainConfig, run: Path) -> Path:
    """A finished run that kept steps 3 and 4; returns the latest checkpoint's tensors."""
    return train(cache, run, config).checkpoint


def flipped(data: bytes, position: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


@pytest.mark.guarantee(
    "G18", "torn, flipped, missing latest: the one before is used, with a warning"
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "empty"])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_damaged_latest_checkpoint_is_passed_over_with_a_warning(
    damage: str, suffix: str, fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=4, checkpoint_every=3)
    latest = two_checkpoints(fitted_cache, config, tmp_path / "run").with_suffix(suffix)
    before = latest.with_suffix(".safetensors").read_bytes()
    data = latest.read_bytes()
    if damage == "delete":
        latest.unlink()
    else:
        spoilt = {"flip": flipped(data, len(data) // 2, 1), "cut": data[:-7], "empty": b""}
        latest.write_bytes(spoilt[damage])
    if (damage, suffix) == ("delete", ".json"):  # then it does not exist at all
        again = train(fitted_cache, tmp_path / "run", config)
    else:
        with pytest.warns(UserWarning, match="The checkpoint before it is used"):
            again = train(fitted_cache, tmp_path / "run", config)
    assert again.resumed_from == 3
    assert again.checkpoint.read_bytes() == before


@pytest.mark.guarantee("G18", "1,000 flipped bytes of checkpoints: 0 load")
def test_no_flip_in_a_checkpoint_loads_silently(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    latest = two_checkpoints(fitted_cache, make_config(num_steps=1), tmp_path / "run")
    generator = random.Random(0)
    for path in (latest, latest.with_suffix(".json")):
        data = path.read_bytes()
        for _ in range(500):
            position, mask = generator.randrange(len(data)), generator.randrange(1, 256)
            path.write_bytes(flipped(data, position, mask))
            with pytest.raises(CorruptCheckpoint):
                checkpoints.load(tmp_path / "run", 1)
        path.write_bytes(data)
    assert checkpoints.load(tmp_path / "run", 1).step == 1


def test_when_every_checkpoint_is_damaged_the_run_says_so(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=1)
    latest = two_checkpoints(fitted_cache, config, tmp_path / "run")
    latest.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="does not match the digest"),
        pytest.raises(CorruptCheckpoint, match="none of the 1"),
    ):
        train(fitted_cache, tmp_path / "run", config)


def test_the_last_and_the_best_checkpoint_are_kept(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        num_steps=10, checkpoint_every=1, validate_every=1, keep_checkpoints=2, lr=3e-2, warmup=0
    )
    train(learnable_cache, tmp_path / "run", config)
    scores = {line["step"]: line["score"] for line in read_metrics(tmp_path / "run", "validate")}
    best = min(scores, key=lambda step: scores[step])
    assert checkpoints.steps(tmp_path / "run") == sorted({best, 9, 10})
    assert checkpoints.load_best(tmp_path / "run").step == best


def test_a_run_is_not_continued_on_other_rows(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    small, large = make_cache(num_rows=40, name="s.cache"), make_cache(num_rows=48, name="l.cache")
    for cache in (small, large):
        fit_stats(cache)
    train(small, tmp_path / "run", make_config(num_steps=1))
    with pytest.raises(RunMismatch, match="training rows"):
        train(large, tmp_path / "run", make_config(num_steps=1))


def test_a_run_is_not_continued_when_its_rows_became_other_images(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache()
    fit_stats(cache)
    config = make_config(num_steps=4)
    with pytest.raises(Interrupted):
        train(cache, tmp_path / "run", config, progress=interrupt_at(2))
    rename_images(cache)
    fit_stats(cache)
    with pytest.raises(RunMismatch, match=r"other images.*index.*another --out"):
        train(cache, tmp_path / "run", config)
