"""A whole run with its cache on an object store: the same bytes as on a disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache.storage.objects import lease
from phistill.cache.storage.open_files import open_files
from phistill.cli import main
from phistill.pipeline import CacheSettings, extract
from phistill.train import TrainConfig, evaluate, train
from tests.object_store import FaultProxy
from tests.pictures import coloured_squares

SETTINGS = CacheSettings(pixel_size=32, shard_rows=4, seed=1, holdout=0.2)
OPTIONS = ["--pixel-size", "32", "--shard-rows", "4", "--seed", "1", "--holdout", "0.2"]
TEACHERS = Path(__file__).parent / "pipeline"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images of coloured squares."""
    return coloured_squares(tmp_path / "images", 40)


def phistill(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_extract_killed_and_resumed_then_statistics_training_and_evaluation(
    images: Path,
    bucket_url: str,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(TEACHERS))
    teacher = "t=module:tiny_teacher:build"
    local = extract(images, tmp_path / "local", [f"{teacher}?pause=0.1"], settings=SETTINGS).cache
    command = [sys.executable, "-m", "phistill", "extract", str(images), "--cache", bucket_url]
    command += ["--teacher", f"{teacher}?pause=0.1", "--workers", "1", *OPTIONS]
    modules = os.pathsep.join([str(TEACHERS), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while killed.poll() is None and not open_files(bucket_url).exists("commits/t/000001.json"):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said.decode()
    assert store.open(bucket_url).missing_shards("t"), "it was done before it could be killed"
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    remote = extract(images, bucket_url, [f"{teacher}?pause=0.1"], settings=SETTINGS).cache
    assert remote.digest() == local.digest()
    for place in (str(tmp_path / "local"), bucket_url):
        assert phistill("fit-stats", place).exit_code == 0
    assert store.open(bucket_url).digest() == store.open(local.path).digest()
    verified = phistill("verify", bucket_url)
    assert f"{bucket_url} is whole" in verified.output
    assert json.loads(phistill("inspect", bucket_url, "--json").output)["complete"]

    losses = {}
    for name, place in (("local", str(local.path)), ("remote", bucket_url)):
        run = tmp_path / "runs" / name
        losses[name] = train(place, run, config(order="block")).losses
        assert evaluate(run, untrained=False)
    assert losses["remote"] == losses["local"]
    with pytest.warns(UserWarning, match="Take --set order=block"):
        train(bucket_url, tmp_path / "runs" / "full", config(order="full"))
    found = phistill("doctor", "--cache", bucket_url, "--run", str(tmp_path / "runs" / "remote"))
    assert f"{bucket_url}: 40 rows, teachers t" in found.output
    assert "t/patches has its statistics" in found.output
    assert phistill("report", bucket_url, "--out", str(tmp_path / "report.html")).exit_code == 0
    facts = json.loads((tmp_path / "runs" / "remote" / "config.json").read_text())
    assert [cache["path"] for cache in facts["caches"]] == [bucket_url]


def config(**changes: Any) -> TrainConfig:
    """Two steps of a tiny student that reads every batch from the cache."""
    return TrainConfig(
        **{
            "student": "vit_tiny_patch16_224",
            "student_options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "num_steps": 2,
            "head_width": 24,
            "checkpoint_every": 0,
            "batch_size": 8,
            "memory_bytes": 0,
            "device": "cpu",
            "tensorboard": False,
            **changes,
        }
    )
