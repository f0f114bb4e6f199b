"""Settings of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from phistill.errors import RunMismatch, UsageError
from phistill.train.checkpoint import refuse_changes
from phistill.train.config import SAFE_KEYS, TrainConfig, settings, settings_text


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
        ({"num_steps": True}, "num_steps=True must be a whole number, at least 0"),
        ({"lr": float("nan")}, "lr=nan must be a number between 0 and 1,000"),
        ({"teachers": "clip"}, "teachers='clip' must be a list, each of it a text"),
        ({"weights": 2}, "weights=2 must be a table"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number between 1 and 16,777,216"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0 must be a whole number, at least 1"),
        ({"patch_loss": "l2"}, "one of mse, cosine, hybrid-mse, hybrid-smooth-l1 or package"),
        ({"patch_loss_options": {"delta": 1}}, "are for a plug-in"),
        ({"partition": "some"}, "partition='some' must be one of all or one"),
        ({"weights": {"a": 2.0}}, "needs balance='fixed'"),
        ({"pixel_std": [1.0, 0.0, 1.0]}, "a list of 3, each of it a number, above 0"),
        ({"betas": [0.9, 1.0]}, "at least 0 and below 1"),
        ({"weights": {"a": -1.0}}, "each value a number, at least 0"),
        ({"clip_norm": float("inf")}, "clip_norm=inf must be"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(values)
    with pytest.raises(UsageError, match=message):
        TrainConfig(**values)  # type: ignore[arg-type]


def test_an_integer_is_taken_for_a_float() -> None:
    assert TrainConfig.from_dict({"lr": 1}).lr == 1.0


def test_only_settings_that_move_bytes_may_change_on_resume() -> None:
    before, run = TrainConfig().to_dict(), Path("runs/one")
    refuse_changes(run, before, TrainConfig(loader_workers=3, log_every=1, memory_bytes=0))
    with pytest.raises(RunMismatch, match=r"seed: 0 -> 1"):
        refuse_changes(run, before, TrainConfig(seed=1))
    assert set(TrainConfig.__struct_fields__) >= SAFE_KEYS


def test_options_spelt_with_tuples_are_those_that_a_checkpoint_gives_back() -> None:
    config = TrainConfig(student_options={"depths": (1, 2)})
    refuse_changes(Path("runs/one"), json.loads(json.dumps(config.to_dict())), config)


def test_every_setting_has_a_section_and_a_meaning() -> None:
    everything = settings()
    assert [one.name for one in everything] == list(TrainConfig.__struct_fields__)
    assert [one.name for one in everything if len(one.meaning) < 10 or not one.section] == []
    assert all(f"  {one.name} = {one.default}" in settings_text() for one in everything)


def test_a_config_is_built_without_loading_torch() -> None:
    code = "import sys, phistill.train; phistill.train.TrainConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
