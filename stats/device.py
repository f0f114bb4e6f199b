"""Sums of a block through torch, for a GPU.

The block travels in its stored type and only its sums come back. Products are full float32, never
TF32, or float64 when exact, as on the CPU; the last bits differ from it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Shaped

from ..cache.errors import UsageError
from .blocks import PILOT_VECTORS, BlockSums, Real, TakeBlock


@lru_cache(maxsize=4)
def torch_sums(device: str) -> TakeBlock:
    """What BlockSummer does, on a torch device; UsageError when there is no such device."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device={device!r} cannot be used: {error}. Take cpu, or one that torch lists."
        ) from error
    torch.set_float32_matmul_precision("highest")  # TF32 would leave three digits

    def take(block: Shaped[np.ndarray, "b c"], dtype: Real) -> BlockSums:
        kind = torch.float32 if dtype is np.float32 else torch.float64
        x = torch.from_numpy(np.ascontiguousarray(block)).to(place)
        stride = max(1, len(block) // PILOT_VECTORS)
        pilot = x[::stride].double().mean(dim=0).to(kind)
        centred = x.to(kind) - pilot
        offset = centred.mean(dim=0)
        products = centred.T @ centred
        energies = (centred - offset).square().sum(dim=1)
        return BlockSums(
            pilot.double().cpu().numpy(),
            offset.double().cpu().numpy(),
            ((products + products.T) / 2).cpu().numpy(),  # symmetric to the bit, as SYRK is
            energies.cpu().numpy(),
        )

    return take
