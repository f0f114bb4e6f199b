"""A real Slurm, of one node: the shipped array, queued again at its time limit; tasks of srun."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import phistill.cache as store
from phistill.pipeline import CacheSettings, extract
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train
from phistill.train.metrics import read_metrics
from tests.pictures import coloured_squares
from tests.slurm_cluster import IS_HERE, slurm, wait_for_jobs
from tests.train.conftest import TINY

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not IS_HERE, reason="needs slurmctld, slurmd and munge"),
    pytest.mark.skipif(
        len(socket.if_nameindex()) < 2 if hasattr(socket, "if_nameindex") else True,
        reason="Slurm's node wants an interface beside loopback; .ci/run has a step of its own",
    ),
    pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="needs root"),
]

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent.parent / "examples" / "extract.sbatch"
OPTIONS = "--pixel-size 16 --shard-rows 4 --seed 1 --workers 1"
SETTINGS = CacheSettings(pixel_size=16, shard_rows=4, seed=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """48 images: twelve shards."""
    return coloured_squares(tmp_path / "images", 48)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with slurm(tmp_path / "slurm") as variables:
        scripts = Path(sys.executable).parent
        yield {
            **variables,
            "PATH": f"{scripts}{os.pathsep}{variables['PATH']}",
            "PYTHONPATH": str(TESTS),
            "OMP_NUM_THREADS": "1",
        }


def test_an_array_that_reaches_its_time_limit_is_queued_again_and_makes_the_same_cache(
    images: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    teacher = "t=module:tiny_teacher:build?pause=0.4"
    whole = extract(images, tmp_path / "whole", [teacher], settings=SETTINGS).cache
    cache = tmp_path / "shared.cache"
    script = tmp_path / "extract.sbatch"
    script.write_text(_for_this_machine(SCRIPT.read_text(), images, cache, teacher))
    subprocess.run(["sbatch", str(script)], env=environment, cwd=tmp_path, check=True)
    wait_for_jobs(environment, 540)
    said = [path.read_text() for path in sorted(tmp_path.glob("extract-*.log"))]
    assert len(said) == 2
    # 4.8 s of pauses do not fit into two limits of 2 s, so one at least was stopped and came again;
    # the other may have found all its work done, if it started late.
    assert any("time limit" in text for text in said), said
    assert store.open(cache).digest() == whole.digest(), said


def test_the_tasks_of_srun_share_the_work(
    images: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    teacher = "t=module:tiny_teacher:build"
    whole = extract(images, tmp_path / "whole", [teacher], settings=SETTINGS).cache
    command = ["srun", "--ntasks", "2", "phistill", "extract", str(images), "--cache"]
    command += [str(tmp_path / "c"), "--teacher", teacher, *OPTIONS.split()]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"process 0 of 2 of srun: this is worker 0/2", done.stderr)
    assert re.search(r"process 1 of 2 of srun: this is worker 1/2", done.stderr)
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_tasks_of_srun_train_one_student_with_the_losses_of_one_process(
    images: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    cache = extract(
        images, tmp_path / "c", ["t=module:tiny_teacher:build"], settings=SETTINGS
    ).cache
    fit_stats(cache)
    settings = {**TINY, "num_steps": 4}
    train(cache, tmp_path / "alone", TrainConfig(**settings))
    file = tmp_path / "run.toml"
    file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
    command = ["srun", "--ntasks", "2", "phistill", "train", str(cache.path)]
    command += ["--out", str(tmp_path / "two"), "--config", str(file)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, two = (
        [list(line["losses"].values()) for line in read_metrics(tmp_path / run, "train")]
        for run in ("alone", "two")
    )
    assert len(alone) == 4
    np.testing.assert_allclose(two, alone, rtol=1e-6)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _for_this_machine(script: str, images: Path, cache: Path, teacher: str) -> str:
    """The shipped script with a folder, teacher and time of this test, without GPUs."""
    changes = {
        r"--array=0-7": "--array=0-1",
        r"(?m)^#SBATCH --(gpus-per-task|mem-per-cpu).*\n": "",
        r"--cpus-per-task=12": "--cpus-per-task=1",
        r"WORKERS=8": "WORKERS=2",
        r"IMAGES=\S+": f"IMAGES={images}",
        r"CACHE=\S+": f"CACHE={cache}",
        r"(?m)^    --teacher 'dino.*\n": f"    --teacher '{teacher}' {OPTIONS} \\\\\n",
        r"(?m)^    --teacher clip.*\n": "",
        r"--time-limit 3h50m": "--time-limit 2s",
    }
    for pattern, replacement in changes.items():
        script, count = re.subn(pattern, replacement, script)
        assert count, pattern
    return script
