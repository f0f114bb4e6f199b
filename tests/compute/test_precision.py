"""bfloat16 where there are units for it; float32 in full; the caller's settings as they were."""

from __future__ import annotations

import pytest
import torch

from phistill.compute.precision import (
    full_float32,
    has_bfloat16,
    products_in,
    resolve_autocast,
    resolve_precision,
    same_bits,
    widest_float,
    without_autocast,
)
from phistill.errors import UsageError

from .conftest import Machine

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


def test_auto_is_bfloat16_where_the_hardware_has_it(machine: Machine) -> None:
    machine(cuda=1)
    assert resolve_precision("auto", CUDA) == "bf16"
    assert resolve_autocast(None, CUDA) == "bfloat16"


def test_a_gpu_that_only_emulates_bfloat16_takes_float32(machine: Machine) -> None:
    machine(cuda=1, bfloat16=False)
    assert torch.cuda.is_bf16_supported()  # what torch says when it is not asked for hardware
    assert not has_bfloat16(CUDA)
    assert resolve_precision("auto", CUDA) == "float32"
    assert resolve_autocast(None, CUDA) == "float32"
    assert resolve_autocast("float16", CUDA) == "float16"
    with pytest.raises(UsageError, match="cuda:0 has no bfloat16 units"):
        resolve_precision("bf16", CUDA)
    with pytest.raises(UsageError, match="cuda:0 has no bfloat16 units"):
        resolve_autocast("bfloat16", CUDA)


def test_apple_and_a_plain_cpu_take_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert [resolve_precision("auto", device) for device in (CPU, MPS)] == ["float32"] * 2
    assert resolve_precision("bf16", CPU) == "bf16"  # slow there, and right
    assert resolve_autocast(None, MPS) == "float32"


def test_a_word_that_is_no_type_is_refused() -> None:
    with pytest.raises(UsageError, match=r"autocast='half' is not known; choose one of float32"):
        resolve_autocast("half", CPU)


def test_products_take_the_type_that_is_named_whatever_the_caller_does() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.float16):
        with products_in("float32", "cpu"):
            assert (x @ x).dtype == torch.float32
        with products_in("bfloat16", "cpu"):
            assert (x @ x).dtype == torch.bfloat16
        with without_autocast("cpu"):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.float16


def test_tf32_is_off_inside_and_the_callers_choice_stands_afterwards() -> None:
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    convolutions = cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        cudnn.allow_tf32 = True
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = convolutions


def test_the_same_bits_are_asked_for_only_inside_and_only_if_wanted() -> None:
    cudnn, before = torch.backends.cudnn, torch.backends.cudnn.benchmark
    try:
        cudnn.benchmark = True
        for wanted in (False, True):
            with same_bits(wanted):
                assert torch.are_deterministic_algorithms_enabled() == wanted
                assert cudnn.benchmark != wanted
            assert not torch.are_deterministic_algorithms_enabled()
            assert cudnn.benchmark
    finally:
        cudnn.benchmark = before


def test_apple_has_no_float64() -> None:
    assert widest_float(MPS) == torch.float32
    assert widest_float(CPU) == widest_float(CUDA) == torch.float64
