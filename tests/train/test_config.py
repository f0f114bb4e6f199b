"""Settings of a run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from phistill.errors import RunMismatch, UsageError
from phistill.train.changes import differences, refuse_changes
from phistill.train.config import SAFE_KEYS, TrainConfig


def test_a_config_survives_json() -> None:
    config = TrainConfig(
        teachers=("a", "b"),
        student_options={"depth": 2},
        betas=(0.9, 0.95),
        balance="fixed",
        weights={"a": 2.0},
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="Did you mean batch_size"):
        TrainConfig.from_dict({"batchsize": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "lr='fast' must be a number"),
        ({"num_steps": True}, "num_steps=True must be a whole number"),
        ({"lr": float("nan")}, "lr=nan must be between"),
        ({"teachers": "clip"}, "teachers='clip' must be a list, each of it a text"),
        ({"weights": 2}, "weights=2 must be a table"),
        ({"batch_size": 0}, "batch_size=0 must be between 1 and 16,777,216"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0 must be at least 1"),
        ({"patch_loss": "l2"}, "mse, cosine, hybrid-mse, hybrid-smooth-l1, or package"),
        ({"batch_size": 10, "accumulate": 4}, "10 % 4 = 2"),
        ({"mirror": True}, "mirrored cached grid"),
        ({"weights": {"a": 2.0}}, "needs balance='fixed'"),
        ({"pixel_std": [1.0, 0.0, 1.0]}, "above 0"),
        ({"betas": [0.9]}, "two numbers"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(values)


def test_an_integer_is_taken_for_a_float() -> None:
    assert TrainConfig.from_dict({"lr": 1}).lr == 1.0


def test_only_settings_that_move_bytes_may_change_on_resume() -> None:
    before = TrainConfig().to_dict()
    safe = TrainConfig(loader_workers=3, log_every=1, memory_bytes=0).to_dict()
    assert differences(before, safe) == {}
    with pytest.raises(RunMismatch, match=r"seed: 0 -> 1"):
        refuse_changes("runs/one", before, TrainConfig(seed=1).to_dict())
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= SAFE_KEYS


def test_a_config_is_built_without_loading_torch() -> None:
    code = "import sys, phistill.train; phistill.train.TrainConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
