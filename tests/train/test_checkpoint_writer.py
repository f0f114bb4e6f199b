"""Checkpoints are written by a thread, when minutes or steps ask for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phistill.cache import Cache
from phistill.cache.storage.publish import PublishError
from phistill.compute.copies import host_copies
from phistill.compute.signals import Interrupted
from phistill.errors import UsageError
from phistill.stats import fit_stats
from phistill.train import Progress, TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.metrics import read_metrics

from .test_resume import interrupt_at

Config = Callable[..., TrainConfig]


def before_each_write(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """A disk that takes its time."""
    save = checkpoints.save

    def slow(*arguments: Any) -> Path:
        wait()
        return save(*arguments)

    monkeypatch.setattr(checkpoints, "save", slow)


def test_the_student_learns_on_while_a_checkpoint_is_written(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write ends only after three further steps; what it holds is from before them."""
    config = make_config(num_steps=6, checkpoint_every=2, keep_checkpoints=9)
    train(fitted_cache, tmp_path / "fast", config)
    learnt = threading.Event()
    before_each_write(monkeypatch, lambda: learnt.wait(60) or pytest.fail("the loop waits"))

    def tell(progress: Progress) -> None:
        if progress.step == 4:
            learnt.set()

    train(fitted_cache, tmp_path / "slow", config, progress=tell)
    assert checkpoints.steps(tmp_path / "slow") == [2, 4, 6]
    for step in (2, 4, 6):
        one, two = (checkpoints.load(tmp_path / name, step) for name in ("fast", "slow"))
        assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())


def test_a_run_that_is_stopped_waits_for_its_checkpoint(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_each_write(monkeypatch, lambda: time.sleep(0.3))
    with pytest.raises(Interrupted, match="stopped after step 3; everything is saved"):
        train(fitted_cache, tmp_path / "run", make_config(), progress=interrupt_at(3))
    assert checkpoints.load(tmp_path / "run", 3).step == 3


def test_a_write_that_fails_is_raised_while_the_student_learns(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    steps: list[int] = []

    def tell(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 1:
            (tmp_path / "run" / "checkpoints").write_text("no folder")

    config = make_config(num_steps=100_000, checkpoint_every=2)
    with pytest.raises(PublishError, match=r"00000002.safetensors could not be written"):
        train(fitted_cache, tmp_path / "run", config, progress=tell)
    assert 2 <= steps[-1] < 100_000


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"checkpoint_minutes": 1e-6}, [5, 10, 15, 17]),  # as often as someone looks
        ({"checkpoint_minutes": 0.0}, [17]),
        ({"checkpoint_minutes": 1e6}, [17]),
        ({"checkpoint_minutes": 0.0, "checkpoint_every": 8}, [8, 16, 17]),
    ],
)
def test_checkpoints_are_due_by_minutes_or_by_steps(
    changes: dict[str, Any],
    wanted: list[int],
    fitted_cache: Cache,
    make_config: Config,
    tmp_path: Path,
) -> None:
    config = make_config(num_steps=17, log_every=5, keep_checkpoints=99, **changes)
    train(fitted_cache, tmp_path / "run", config)
    assert checkpoints.steps(tmp_path / "run") == wanted


def test_the_best_validation_has_a_checkpoint_whatever_the_clock_says(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=12, validate_every=2, checkpoint_minutes=0.0, lr=3e-2, warmup=0)
    train(learnable_cache, tmp_path / "run", config)
    scores = {line["step"]: line["score"] for line in read_metrics(tmp_path / "run", "validate")}
    best = min(scores, key=lambda step: scores[step])
    assert checkpoints.load_best(tmp_path / "run").facts["score"] == scores[best]


def test_the_best_may_be_the_one_whose_neighbours_name_most_labels(
    learnable_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        num_steps=12, validate_every=2, checkpoint_minutes=0.0, lr=3e-2, warmup=0, best_by="knn"
    )
    train(learnable_cache, tmp_path / "run", config)
    lines = {line["step"]: line for line in read_metrics(tmp_path / "run", "validate")}
    best = checkpoints.load_best(tmp_path / "run")
    assert lines[best.step]["knn"] == max(line["knn"] for line in lines.values())
    assert best.facts["score"] == 1 - lines[best.step]["knn"]


def test_the_best_by_labels_wants_labels(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=64)
    fit_stats(cache)
    train(cache, tmp_path / "run", make_config(num_steps=1, best_by="knn"))
    one = make_config(num_steps=1, best_by="knn", labels=("class-1",))
    with pytest.raises(UsageError, match="best_by='knn' wants two labels"):
        train(cache, tmp_path / "of-one", one)
    assert not (tmp_path / "of-one").exists()


def test_copies_are_not_changed_by_what_comes_after() -> None:
    weights = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.uint8)}
    copies = host_copies(weights)
    for value in weights.values():
        value.add_(7)
    assert list(copies) == ["a", "b"]
    assert torch.equal(copies["a"], torch.ones(3))
    assert torch.equal(copies["b"], torch.zeros(2, dtype=torch.uint8))


def test_tensors_of_every_dtype_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    """Also those without elements, without dimensions, and that do not lie in a row."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    whole = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
    unsigned = (torch.uint16, torch.uint32, torch.uint64)
    tensors = {str(t): torch.arange(6).reshape(2, 3).to(t).T for t in floats + whole + unsigned}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(1.5), "é": torch.ones(3)}
    checkpoints.save(tmp_path, checkpoints.Checkpoint(3, tensors, {}))
    loaded = checkpoints.load(tmp_path, 3).tensors
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
