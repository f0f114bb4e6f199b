"""The processes of one run: a single one, or those that ``torchrun`` started.

gloo joins ranks on CPUs, nccl on GPUs. Every rank takes an equal, contiguous share of each global
batch, so the order of rows does not depend on their number.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from phistill.errors import UsageError


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
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def no_sync(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """Gradients of an accumulated part stay on this rank."""
        return contextlib.nullcontext() if self.world == 1 else module.no_sync()

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, value: Tensor) -> list[Tensor]:
        """A host tensor of every rank, all of one shape and dtype, in their order."""
        if self.world == 1:
            return [value]
        mine = value.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine)
        return [one.to(value.device) for one in found]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Ranks:
    """The ranks that torchrun's environment describes, joined; a single one without it."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = resolve_device(device, local if world > 1 else None)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(rank=rank, world=world, device=chosen)


def leave(ranks: Ranks) -> None:
    """Part from the other ranks."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto`` takes CUDA when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device={name!r} is not a torch device; take auto, cpu or cuda."
        ) from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device={name!r}, but torch sees no such device. Take cpu.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device={name!r}, but torch sees no CUDA device. Take cpu.")
        if local_rank is not None:
            device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 on GPUs and on CPUs with bfloat16 matrix units (AMX), else float32.

    Without such units bfloat16 products are no faster than float32's on a CPU.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    # No public name tells; an older torch without this one trains in float32.
    has_matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and has_matrix_units() else "float32"
