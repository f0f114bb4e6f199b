"""The processes of one run: a single one, or those that ``torchrun`` or ``srun`` started.

gloo joins ranks on CPUs and the hosts of GPUs, nccl the GPUs. Every rank takes an equal, contiguous
share of each global batch, so the order of rows does not depend on their number.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from phistill.errors import PhistillError, UsageError

from .devices import choose_device, current_device
from .launch import Launch, launched, meeting_point
from .signals import waiting

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it ends with an error: longer than the first rank
alone scores held-out images or writes a checkpoint, for which nccl's own 10 minutes are short."""

PATIENCE_S = 10.0
"""After this long a rank says that it waits for the others to start."""


BUFFERS = (
    "forward_sync_buffers"  # its name since torch 2.15
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""The option under which every rank keeps buffers of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Only the first rank writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over ranks; itself when alone."""
        if self.world == 1:
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        own_buffers: dict[str, Any] = {BUFFERS: False}
        return DistributedDataParallel(module, device_ids=ids, **own_buffers)

    def no_sync(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """Gradients of an accumulated part stay on this rank."""
        return contextlib.nullcontext() if self.world == 1 else module.no_sync()

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers. It passes from host to host, so that no rank waits
        for its GPU."""
        if self.world == 1:
            return number
        has_gloo = "cpu:" in dist.get_backend_config()  # a group of the caller's own may not
        held = torch.tensor([number], device="cpu" if has_gloo else self.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held)

    def gathered(self, value: Tensor) -> list[Tensor]:
        """A host tensor of every rank, all of one shape and dtype, in their order."""
        if self.world == 1:
            return [value]
        mine = value.to(self.device)
        received = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(received, mine)
        return [one.to(value.device) for one in received]

    def gathered_objects(self, value: Any) -> list[Any]:
        """What can be pickled, of every rank, in their order."""
        if self.world == 1:
            return [value]
        received = [None] * self.world
        dist.all_gather_object(received, value)
        return received

    def from_first(self, value: Any) -> Any:
        """The first rank's value on every rank; what can be pickled."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's host tensors on every rank; the others' are not looked at."""
        if self.world == 1:
            return dict(tensors)
        shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        received = {}
        for name, (shape, dtype) in self.from_first(shapes).items():
            sent = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            on_device = sent.to(self.device).contiguous()
            dist.broadcast(on_device, 0)
            received[name] = on_device.to("cpu")
        return received

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """What fails inside on one rank fails on all, rather than leaving the others to wait."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        texts = self.gathered_objects(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(texts):
            if text is not None:
                raise PhistillError(f"process {rank} of {self.world} stopped: {text}")


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that a launcher's environment describes, joined while entered; one without it.

    UsageError when the device does not exist, or several ranks are to share one by its index.
    """
    launch = launched(os.environ)
    place = choose_device(device, launch.local_rank if launch is not None else None)
    with current_device(place):
        if launch is None:
            yield Ranks(device=place)
            return
        if place.type == "cuda" and ":" in device:
            raise UsageError(
                f"device={device!r} is one device, and {launch} is not alone. Take cuda: every "
                "process then takes the one of its number."
            )
        # A launcher that shows each process one device alone leaves nothing to count.
        if place.type == "cuda" and launch.num_local > (count := torch.cuda.device_count()) > 1:
            raise UsageError(
                f"{launch.num_local} processes of {launch.launcher} on this machine, and torch "
                f"sees {count} CUDA devices: ranks cannot share one. Start {count} processes."
            )
        begun_here = not dist.is_initialized()
        if begun_here:
            _join(launch, place)
        try:
            with _saying_who_is_lost(launch):
                yield Ranks(rank=launch.rank, world=launch.world, device=place)
        finally:
            if begun_here and dist.is_initialized():
                dist.destroy_process_group()


@contextlib.contextmanager
def _saying_who_is_lost(launch: Launch) -> Iterator[None]:
    """What torch raises when another rank is gone, as a PhistillError.

    Only nccl has errors of its own (``dist.DistError``); gloo's are RuntimeErrors that begin with
    the file of its source.
    """
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or "gloo" in str(error).partition("\n")[0]
        if launch.world == 1 or not is_lost:
            raise
        raise PhistillError(
            f"{launch} has lost another process of this run, which ended or cannot be reached; its "
            "own output says why. Mend that and start all of them again: they go on from the last "
            f"checkpoint. ({str(error).strip().partition('. ')[0]})"
        ) from error


def _join(launch: Launch, device: torch.device) -> None:
    host, port = meeting_point(launch, os.environ)
    # torchrun's agent serves the store itself, which only env:// knows.
    method = "env://" if launch.launcher == "torchrun" else f"tcp://{host}:{port}"
    text = (
        f"{launch} waits for the others at {host}:{port}, {TIMEOUT.seconds // 60} minutes at most. "
        f"If it is alone, unset {launch.variable}."
    )
    with waiting(text, PATIENCE_S):
        dist.init_process_group(
            # gloo for what the hosts tell each other.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=method,
            timeout=TIMEOUT,
            rank=launch.rank,
            world_size=launch.world,
            device_id=device if device.type == "cuda" else None,
        )
