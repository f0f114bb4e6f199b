"""Machines that this one is not: what torch says of its devices is replaced, its functions stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let torch see ``cuda`` CUDA devices, bfloat16 units or not, and Apple's GPU or not."""

    def see(*, cuda: int = 0, bfloat16: bool = True, mps: bool = False) -> None:
        def is_bf16_supported(including_emulation: bool = True) -> bool:
            return bfloat16 or including_emulation

        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return see
