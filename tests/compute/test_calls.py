"""Every call to a GPU that compute/ makes, held against the signature that torch gives it."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import torch

from phistill.compute.devices import (
    choose_device,
    hardware_name,
    peak_memory_bytes,
    release_cached_memory,
    synchronize,
)
from phistill.compute.ranks import Ranks
from phistill.compute.seeds import RandomState

from .conftest import Machine

CALLS = (
    *("synchronize", "empty_cache", "max_memory_allocated", "get_device_name"),
    *("get_rng_state", "set_rng_state"),
)


@pytest.fixture
def cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with one CUDA device, whose functions take what torch's take and do nothing."""
    machine(cuda=1)
    calls = {name: create_autospec(getattr(torch.cuda, name)) for name in CALLS}
    for name, call in calls.items():
        monkeypatch.setattr(torch.cuda, name, call)
    return calls


def test_what_is_asked_of_a_gpu_is_asked_of_the_one_chosen(cuda: dict[str, Any]) -> None:
    device = choose_device("auto")
    cuda["max_memory_allocated"].return_value, cuda["get_device_name"].return_value = 7, "Card"
    synchronize(device)
    release_cached_memory(device)
    assert peak_memory_bytes(device) == 7
    assert hardware_name(device) == "Card"
    for name in ("synchronize", "max_memory_allocated", "get_device_name"):
        cuda[name].assert_called_once_with(torch.device("cuda", 0))
    cuda["empty_cache"].assert_called_once_with()


def test_a_student_on_a_gpu_draws_from_its_own_state_there(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, mine = choose_device("auto"), torch.tensor([1], dtype=torch.uint8)
    outer = torch.tensor([2], dtype=torch.uint8)
    state = RandomState(0, 0, torch.device("cpu"))
    state.device, state.states = device, {**state.states, "cuda": mine}
    cuda["get_rng_state"].return_value = outer
    with state.in_place():
        cuda["set_rng_state"].assert_called_once_with(mine, device)
    cuda["set_rng_state"].assert_called_with(outer, device)


def test_a_module_is_wrapped_for_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.parallel import DistributedDataParallel

    from phistill.compute import ranks as module

    wrap: MagicMock = create_autospec(DistributedDataParallel)
    monkeypatch.setattr(module, "DistributedDataParallel", wrap)
    student, device = torch.nn.Linear(2, 2), torch.device("cuda", 1)
    Ranks(rank=1, world=2, device=device).wrap(student)
    wrap.assert_called_once()
    assert wrap.call_args.kwargs["device_ids"] == [device]
    assert Ranks(device=device).wrap(student) is student


def test_apples_gpu_is_waited_for_and_relieved(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(mps=True)
    names = ("synchronize", "empty_cache")
    calls = {name: create_autospec(getattr(torch.mps, name)) for name in names}
    for name, call in calls.items():
        monkeypatch.setattr(torch.mps, name, call)
    device = choose_device("auto")
    synchronize(device)
    release_cached_memory(device)
    for call in calls.values():
        call.assert_called_once_with()
