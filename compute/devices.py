"""Which device work runs on, and what is asked of it beside kernels.

torch is imported inside the functions: commands that compute nothing load this module too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phistill.errors import UsageError, counted

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto`` is CUDA, then Apple's GPU, then the CPU; a CUDA device always has an index.

    Of several processes on a machine each takes the CUDA device of its ``local_rank``, in turn, so
    one that sees a single device takes that. A device with an index is taken as it is. UsageError
    for what torch does not know or see here.
    """
    import torch

    asked = name
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is not known; write auto, cpu, cuda, cuda:1 or mps."
        ) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise UsageError(
            f"device {name!r} was asked for, but torch sees no such device here. Take auto or cpu."
        )
    if device.type == "cuda":
        device = _indexed_cuda(device, local_rank)
    seen = "" if asked != "auto" else f": {counted(torch.cuda.device_count(), 'CUDA device')} here"
    log.debug("device %s (%s was asked for%s)", device, asked, seen)
    return device


def _indexed_cuda(device: torch.device, local_rank: int | None) -> torch.device:
    import torch

    count = max(1, torch.cuda.device_count())
    if device.index is None:
        return torch.device("cuda", _current_index() if local_rank is None else local_rank % count)
    if device.index >= count:
        raise UsageError(
            f"device '{device}' was asked for, but torch sees {count} CUDA devices here, the last "
            f"of them cuda:{count - 1}."
        )
    return device


@contextlib.contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one of this thread, where pinned memory and collectives
    belong; the caller's is current again afterwards."""
    import torch

    if device.type != "cuda" or device.index == _current_index():
        yield
        return
    with torch.cuda.device(device):
        yield


def _current_index() -> int:
    """Of the current CUDA device; asking must not be what starts CUDA."""
    import torch

    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def runs_ahead(device: torch.device) -> bool:
    """Whether calls return before their kernels ran, so that looking at a value waits for all of
    them: CUDA. Apple's GPU does too, but is treated as a CPU, for want of one to try it on."""
    return device.type == "cuda"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_cached_memory(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device."""
    import torch

    if device.type == "cuda":
        with current_device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most bytes of tensors on a CUDA device at one time; None on others."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def hardware_name(device: torch.device) -> str:
    """The model of a CUDA device, or the device's type."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass(frozen=True, slots=True)
class VisibleDevice:
    """A device other than the CPU that torch sees."""

    device: str
    """``cuda:0``, ``mps``."""

    name: str
    memory_bytes: int | None
    """None where it is the machine's own memory."""


def visible_devices() -> list[VisibleDevice]:
    """What ``auto`` chooses from, its choice first; empty where that is the CPU."""
    import torch

    if torch.cuda.is_available():
        facts = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [
            VisibleDevice(f"cuda:{number}", one.name, one.total_memory)
            for number, one in enumerate(facts)
        ]
    if torch.backends.mps.is_available():
        return [VisibleDevice("mps", "Apple GPU", None)]
    return []
