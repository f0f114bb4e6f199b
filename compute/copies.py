"""Copies between the host and a device, beside its kernels where it is a CUDA device.

Each direction has a stream of its own, shared by everything in the process that copies that way:

* to the device, the stream that uses a tensor waits for its copy (``Sent.take``);
* to the host, the copy waits for the kernels before it, and the host for the copy
  (``Arriving.wait``);
* the allocator is told of the second stream that touches a tensor (``record_stream``), or it would
  hand the memory to others too early.

On any other device a copy has ended when the call returns: one that goes on by itself would read
host memory that was written again meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .devices import current_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Sent:
    """Tensors that travel to a device, or have."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event | None = None

    def take(self) -> tuple[Tensor, ...]:
        """The tensors on the device, for the current stream of the caller."""
        import torch

        if self.copied is not None:
            stream = torch.cuda.current_stream(self.tensors[0].device)
            stream.wait_event(self.copied)
            for tensor in self.tensors:
                tensor.record_stream(stream)
        return self.tensors


class ToDevice:
    """Copies of host tensors to one device, in order."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: torch.cuda.Event | None = None

    def send(self, tensors: Sequence[Tensor]) -> Sent:
        """Begin to copy; pageable memory is pinned first, or the copy would wait for itself."""
        if self.device.type == "cpu":
            return Sent(tuple(tensors))
        if self.device.type != "cuda":
            return Sent(tuple(tensor.to(self.device) for tensor in tensors))
        import torch

        with current_device(self.device):
            stream = copy_stream(self.device, "to device")
            pinned = [t if t.is_pinned() else t.pin_memory() for t in tensors]
            with torch.cuda.stream(stream):
                moved = tuple(t.to(self.device, non_blocking=True) for t in pinned)
                self._last = torch.cuda.Event(blocking=True)
                self._last.record(stream)
        return Sent(moved, self._last)

    def finish(self) -> None:
        """Wait until every copy begun here has left the host's memory."""
        if self._last is not None:
            self._last.synchronize()


def placed(value: Tensor, device: torch.device) -> Tensor:
    """A small host tensor on a device, for the caller's current stream.

    It is pinned on its way to CUDA: a copy of pageable memory waits for the kernels before it.
    """
    if device.type != "cuda":
        return value.to(device)
    with current_device(device):
        return value.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, eq=False, slots=True)
class Arriving:
    """Tensors that travel to the host, or have."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event | None = None

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host; any thread may call this."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors


def to_host(tensors: Sequence[Tensor]) -> Arriving:
    """Begin to copy tensors of one device to the host, after the kernels of the current stream."""
    device = tensors[0].device
    if device.type != "cuda":
        return Arriving(tuple(tensor.cpu() for tensor in tensors))
    import torch

    with current_device(device):
        stream = copy_stream(device, "to host")
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            host = tuple(host_memory(t.shape, t.dtype, device) for t in tensors)
            for source, target in zip(tensors, host, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(stream)
            copied = torch.cuda.Event(blocking=True)
            copied.record(stream)
    return Arriving(host, copied)


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that no later write to ``tensors`` reaches."""
    import torch

    copies: dict[str, Tensor] = {}
    for device in {value.device for value in tensors.values()}:
        mine = {name: value.detach() for name, value in tensors.items() if value.device == device}
        copied = to_host(list(mine.values())).wait()
        # Off CUDA a tensor of the host comes back as it is.
        copies |= {
            name: torch.clone(host) if device.type == "cpu" else host
            for name, host in zip(mine, copied, strict=True)
        }
    return {name: copies[name] for name in tensors}


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory to copy from or to a device: pinned where that is CUDA."""
    import torch

    with current_device(device):
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


@functools.cache
def copy_stream(
    device: torch.device, direction: Literal["to device", "to host"]
) -> torch.cuda.Stream:
    """The one stream of a CUDA device that copies in a direction."""
    import torch

    return torch.cuda.Stream(device)
