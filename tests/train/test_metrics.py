"""Where the numbers of a run go."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phistill.cache import Cache
from phistill.cache.storage.publish import PublishError
from phistill.compute.signals import Interrupted
from phistill.errors import UsageError
from phistill.train import Progress, TrainConfig, cells, sweep, train
from phistill.train.config import LOGGERS
from phistill.train.metrics import JsonLines, read_metrics
from tests.train.conftest import TINY


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real loggers that write into folders: W&B offline, MLflow's file store."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())


def train_with_a_break(cache: Cache, out: Path, config: TrainConfig, *, at_step: int) -> None:
    """Stopped while it logs ``at_step``, and gone on with."""

    def stop(at: Progress) -> None:
        if at.step == at_step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(cache, out, config, progress=stop)
    train(cache, out, config)


def totals(run: Path) -> list[tuple[int, float]]:
    """Step and total of every logged step, as metrics.jsonl has them."""
    return [(line["step"], line["total"]) for line in read_metrics(run, "train")]


def test_tensorboard_reads_each_step_once_though_the_run_was_stopped(
    fitted_cache: Cache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(num_steps=5, loggers=["tensorboard"], checkpoint_every=2)
    train_with_a_break(fitted_cache, tmp_path / "run", config, at_step=3)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("train/total")]
    assert read == [(step, pytest.approx(total)) for step, total in totals(tmp_path / "run")]
    assert [step for step, _ in read] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("validate/score")] == [5]


def wandb_records(run: Path) -> list[Any]:
    """What W&B wrote on the disk, to be sent one day: its protocol's records in LevelDB's log."""
    import wandb

    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    wandb.teardown()  # its process ends, and what it had to write is written
    found, record = [], b""
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        log, at, block = path.read_bytes(), 7, 2**15
        while at + 7 <= len(log):
            if block - at % block < 7:  # what is left of a block is not used
                at += block - at % block
                continue
            _, length, kind = struct.unpack("<IHB", log[at : at + 7])
            record += log[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or its last part
                found.append(protocol.Record.FromString(record))
                record = b""
    return found


def wandb_ids(run: Path) -> list[str]:
    begun = [record.run for record in wandb_records(run) if record.HasField("run")]
    return [one.run_id for one in begun]


def wandb_steps(run: Path) -> list[int]:
    """Of every line that has a training step's total."""
    steps = []
    for record in wandb_records(run):
        names = {item.key or item.nested_key[0] for item in record.history.item}
        if "train/total" in names:
            steps.append(record.history.step.num)
    return steps


def test_a_run_that_goes_on_goes_on_at_wandb_and_one_of_the_same_name_does_not(
    fitted_cache: Cache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(num_steps=3, loggers=["wandb"])
    train_with_a_break(fitted_cache, tmp_path / "one" / "seed=0", config, at_step=2)
    train(fitted_cache, tmp_path / "two" / "seed=0", config)
    assert len({*wandb_ids(tmp_path / "one" / "seed=0")}) == 1
    assert wandb_ids(tmp_path / "one" / "seed=0")[0] != wandb_ids(tmp_path / "two" / "seed=0")[0]
    assert wandb_steps(tmp_path / "one" / "seed=0") == [1, 2, 3]
    assert wandb_steps(tmp_path / "two" / "seed=0") == [1, 2, 3]


def test_each_cell_of_a_sweep_is_a_run_of_its_own_everywhere(
    fitted_cache: Cache, tmp_path: Path
) -> None:
    base = TINY | {"num_steps": 2, "loggers": ["wandb", "mlflow", "tensorboard"]}
    sweep(fitted_cache, tmp_path / "grid", cells(base, {"normalizer": ["phi-s", "none"]}))
    runs = [tmp_path / "grid" / name for name in ("normalizer=phi-s", "normalizer=none")]
    (first,), (second,) = (wandb_ids(run) for run in runs)
    assert first != second
    for run in runs:
        assert wandb_steps(run) == [1, 2]
        assert list((run / "tensorboard").iterdir())
        (stored,) = [one for one in mlflow_runs() if one.info.run_name == run.name]
        assert mlflow_totals(stored) == totals(run)


def mlflow_runs() -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("phistill")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def mlflow_totals(run: Any) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient().get_metric_history(run.info.run_id, "train/total")
    return [(one.step, one.value) for one in history]


def test_a_run_that_goes_on_goes_on_at_mlflow_and_sends_no_step_twice(
    fitted_cache: Cache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(num_steps=4, loggers=["mlflow"], checkpoint_minutes=0)
    train_with_a_break(fitted_cache, tmp_path / "one" / "seed=0", config, at_step=3)
    (run,) = mlflow_runs()
    assert mlflow_totals(run) == totals(tmp_path / "one" / "seed=0")
    assert run.data.params["num_steps"] == "4"
    assert run.info.status == "FINISHED"
    train(fitted_cache, tmp_path / "two" / "seed=0", config)
    assert [one.info.run_name for one in mlflow_runs()] == ["seed=0", "seed=0"]


LOGGER_OF_ONES_OWN = """
from phistill.train.metrics import Logger

class Mine(Logger):
    def __init__(self, about):
        self.file = open(about.path / "mine.txt", "a")

    def write(self, event, step, values):
        if step == 2:
            raise RuntimeError("the wire is cut")
        print(event, step, values["total"], file=self.file)

    def close(self):
        self.file.close()

def no_logger(about):
    raise OSError("nobody answers")
"""


def test_a_logger_of_ones_own_that_fails_is_named_and_the_run_goes_on(
    fitted_cache: Cache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "logs_of_mine.py").write_text(LOGGER_OF_ONES_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(num_steps=3, loggers=["logs_of_mine:Mine"])
    with pytest.warns(UserWarning, match=r"Mine takes no more numbers \(the wire is cut\)"):
        train(fitted_cache, tmp_path / "run", config)
    (first, *_) = totals(tmp_path / "run")
    assert (tmp_path / "run" / "mine.txt").read_text() == f"train 1 {first[1]}\n"
    config = make_config(num_steps=3, loggers=["logs_of_mine:no_logger"])
    with pytest.raises(UsageError, match="no_logger cannot be begun: nobody answers"):
        train(fitted_cache, tmp_path / "other", config)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(
    fitted_cache: Cache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed.* 'phistill\[{name}\]'"):
        train(fitted_cache, tmp_path / "run", make_config(loggers=[name]))
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_names_its_path_and_is_closed(tmp_path: Path) -> None:
    log = JsonLines(tmp_path, first_step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        log.write("train", 1, {"total": 1.0})
        with pytest.raises(PublishError, match=r"metrics\.jsonl could not be written .*bytes"):
            log.write("train", 2, {"text": "x" * 100})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [1]  # the torn second line is left out
