"""A device that works ahead of the host: nobody looks at it but once every ``log_every`` steps.

The CPU stands in for it. torch's own modes count every call that brings a value to the host; a
second stand-in is pinned memory, in tests/compute/test_copies.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.errors import Diverged
from phistill.train import TrainConfig, train
from phistill.train import checkpoint as checkpoints
from phistill.train.data.loader import Loader
from phistill.train.data.source import open_source
from phistill.train.metrics import read_metrics
from phistill.train.resolve import resolve_run
from phistill.train.step import state as step_state
from phistill.train.step.state import TrainState
from phistill.train.step.values import NotFinite

Config = Callable[..., TrainConfig]
ALONE = Ranks(device=torch.device("cpu"))

TO_HOST = {"item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"}
"""Methods of a tensor that wait for its device."""
BY_VALUE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
}
"""Operations whose result the host must know."""


class Looks(TorchFunctionMode):
    """Counts calls that bring a value to the host, from Python or from within an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.inside = _Inside(self.calls)

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in TO_HOST:
            self.calls[name] += 1
        # Only what Python asks for: the operation below would be counted a second time.
        with self.inside if name not in TO_HOST else contextlib.nullcontext():
            return function(*arguments, **(options or {}))


class _Inside(TorchDispatchMode):
    def __init__(self, calls: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function in BY_VALUE:
            self.calls[str(function)] += 1
        return function(*arguments, **(options or {}))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is taken for a device which works ahead of the host."""
    monkeypatch.setattr(step_state, "runs_ahead", lambda device: True)


@contextlib.contextmanager
def begun(cache: Cache, config: TrainConfig) -> Iterator[tuple[TrainState, Loader]]:
    run = resolve_run(open_caches(cache), config, ALONE.device)
    source = open_source(run.caches, run.targets, run.plan)
    with Loader(source, run.plan, run.targets, start=0, stop=run.num_steps, workers=0) as loader:
        yield TrainState(run, ALONE), loader


EVERYTHING: dict[str, Any] = {
    "balance": "adaloss",
    "ema_decay": 0.9,
    "brightness": 0.3,
    "contrast": 0.2,
    "noise": 0.1,
    "crop_min": 0.5,
    "accumulate": 2,
    "gradient_norm_every": 2,
}


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"partition": "one"}, {"optimizer": "lion"}])
def test_nothing_waits_for_the_device_between_two_looks(
    changes: dict[str, Any], fitted_cache: Cache, make_config: Config
) -> None:
    with begun(fitted_cache, make_config(num_steps=6, **changes)) as (state, loader):
        batches = iter(loader)
        state.train_step(next(batches))  # the optimizer makes its state
        for batch in batches:
            with Looks() as looks:
                state.train_step(batch)
            assert not looks.calls
        with Looks() as looks:
            values = state.look()
        assert values is not None
        assert values.step == 6
        assert looks.calls


def test_on_a_cpu_every_step_is_looked_at(fitted_cache: Cache, make_config: Config) -> None:
    """The twin: the same count finds the looks that are there."""
    with begun(fitted_cache, make_config(num_steps=1)) as (state, loader), Looks() as looks:
        state.train_step(next(iter(loader)))
    assert looks.calls["cpu"]


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"optimizer": "lamb"}])
def test_a_device_that_is_ahead_gives_the_losses_of_one_that_is_not(
    changes: dict[str, Any],
    fitted_cache: Cache,
    make_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(num_steps=9, log_every=4, **changes)
    train(fitted_cache, tmp_path / "ahead", config)
    monkeypatch.undo()
    train(fitted_cache, tmp_path / "at once", config)
    lines = [read_metrics(tmp_path / name, "train") for name in ("ahead", "at once")]
    assert [line["step"] for line in lines[0]] == [4, 8, 9]
    for one, two in zip(*lines, strict=True):
        assert one["losses"] == two["losses"]


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the first teacher's features of some steps be infinite."""
    load = Loader.load

    def spoilt(loader: Loader, step: int) -> Any:
        batch = load(loader, step)
        if step in steps:
            next(iter(batch.values.values()))[1:3] = torch.inf
        return batch

    monkeypatch.setattr(Loader, "load", spoilt)


STUDENTS: dict[str, dict[str, Any]] = {
    "vit": {},
    "batch norm": {
        "student": "resnet10t",
        "student_options": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
        "image_size": 64,
    },
}


@pytest.mark.parametrize("student", list(STUDENTS))
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd", "lookahead_adamw"])
@pytest.mark.parametrize("when", ["ahead", "at once"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named_at_the_next_look(
    student: str,
    optimizer: str,
    when: str,
    fitted_cache: Cache,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, average, optimizer, batch norm, balance and random state are those before it."""
    if when == "ahead":
        monkeypatch.setattr(step_state, "runs_ahead", lambda device: True)
    config = make_config(
        num_steps=8, optimizer=optimizer, ema_decay=0.9, balance="adaloss", **STUDENTS[student]
    )
    with begun(fitted_cache, config) as (state, loader):
        for batch in loader:
            if batch.step == 4:
                break
            state.train_step(batch)
        state.look()
        wanted = {name: value.clone() for name, value in state.tensors().items()}
        facts = state.facts()
    spoil(monkeypatch, {4})
    with begun(fitted_cache, config) as (state, loader):
        steps: list[int] = []

        def learn() -> None:
            for batch in loader:
                steps.append(batch.step)
                state.train_step(batch)
            state.look()

        with pytest.raises(NotFinite, match=r"step 5 is not finite.*2 of 8 rows") as caught:
            learn()
        assert len(steps) == (8 if when == "ahead" else 5)
        assert caught.value.facts["num_steps_skipped"] == (4 if when == "ahead" else 1)
        assert len(caught.value.facts["rows_not_finite"]) == 2
        found = state.tensors()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(value, found[name]), name
        assert state.facts() == facts


@pytest.mark.usefixtures("ahead")
def test_the_run_ends_with_the_checkpoint_of_the_step_before(
    fitted_cache: Cache, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_steps=20, log_every=10)
    spoil(monkeypatch, {12})
    with pytest.raises(Diverged, match=r"step 13 .* the 7 steps after it were left out"):
        train(fitted_cache, tmp_path / "run", config)
    assert checkpoints.steps(tmp_path / "run") == [12]
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [10]


@pytest.mark.usefixtures("ahead")
def test_the_first_step_of_all_may_be_the_one(
    fitted_cache: Cache, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {0})
    with begun(fitted_cache, make_config(num_steps=3, optimizer="lamb")) as (state, loader):
        before = {name: value.clone() for name, value in state.tensors().items()}
        for batch in loader:
            state.train_step(batch)
        with pytest.raises(NotFinite, match="step 1 is not finite"):
            state.look()
        found = state.tensors()
        assert found.keys() == before.keys()
        assert all(torch.equal(value, found[name]) for name, value in before.items())
