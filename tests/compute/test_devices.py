"""One answer to which device, on machines with none, one or several."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from phistill.compute.devices import (
    choose_device,
    current_device,
    hardware_name,
    peak_memory_bytes,
    release_cached_memory,
    synchronize,
    visible_devices,
)
from phistill.errors import UsageError

from .conftest import Machine


def test_auto_is_cuda_then_apple_then_the_cpu(machine: Machine) -> None:
    machine(cuda=1, mps=True)
    assert choose_device("auto") == torch.device("cuda", 0)
    machine(mps=True)
    assert choose_device("auto") == torch.device("mps")
    machine()
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_cuda_device_has_the_index_that_torch_wants(machine: Machine, name: str) -> None:
    machine(cuda=1)
    device = choose_device(name)
    assert device.index == 0
    # What set_device, pinned copies and DistributedDataParallel make of it; without an index this
    # is the ValueError that ended every run on a GPU.
    get_index = torch.cuda._utils._get_device_index
    assert get_index(device) == 0
    with pytest.raises(ValueError, match="index"):
        get_index(torch.device("cuda"))


@pytest.mark.parametrize(("count", "expected"), [(8, 5), (4, 1), (1, 0)])
def test_processes_of_a_machine_take_its_devices_in_turn(
    machine: Machine, count: int, expected: int
) -> None:
    machine(cuda=count)
    for name in ("auto", "cuda"):
        assert choose_device(name, local_rank=5) == torch.device("cuda", expected)


def test_a_device_with_an_index_is_taken_as_it_is(machine: Machine) -> None:
    machine(cuda=2)
    assert choose_device("cuda:1", local_rank=0) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="'cuda:2' was asked for, but torch sees 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "meta", "xpu"])
def test_an_absent_device_is_refused(machine: Machine, name: str) -> None:
    machine()
    with pytest.raises(UsageError, match="torch sees no such device"):
        choose_device(name)
    with pytest.raises(UsageError, match="is not known"):
        choose_device("gpu")


def test_on_a_cpu_nothing_is_asked_of_a_gpu() -> None:
    cpu = torch.device("cpu")
    with current_device(cpu):
        synchronize(cpu)
        release_cached_memory(cpu)
    assert peak_memory_bytes(cpu) is None
    assert hardware_name(cpu) == "cpu"


def test_what_auto_chooses_from_is_listed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        name, total_memory = "Card", 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    machine(cuda=2)
    assert [(d.device, d.name, d.memory_bytes) for d in visible_devices()] == [
        ("cuda:0", "Card", 2**30),
        ("cuda:1", "Card", 2**30),
    ]
    machine(mps=True)
    assert [d.device for d in visible_devices()] == ["mps"]
    machine()
    assert visible_devices() == []


@pytest.mark.parametrize("module", ["devices", "precision", "launch", "seeds", "signals", "blas"])
def test_a_command_that_computes_nothing_loads_no_torch(module: str) -> None:
    code = f"import sys, phistill.compute.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
