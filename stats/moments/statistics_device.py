"""Sums of a block through torch, for a GPU.

The block travels in its stored type and only its sums come back; sums over blocks stay on the host,
in float64. Products are full float32, never TF32, or float64 when exact, as on the CPU; the last
bits differ from it. Tasks share the device's default stream, and fetching the sums waits for it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Shaped

from phistill.errors import UsageError
from phistill.stats.moments.blocks import BlockSums, Real, TakeBlock


@lru_cache(maxsize=4)
def torch_sums(device: str) -> TakeBlock:
    """What BlockSummer does, on a torch device; UsageError when there is no such device."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place, dtype=torch.float64).cpu()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(
            f"device={device!r} cannot be used: {error}. Take cpu, or a device of torch that has "
            "float64, such as cuda."
        ) from error

    def take(
        block: Shaped[np.ndarray, "b c"], pilot: Float[np.ndarray, " c"], dtype: Real
    ) -> BlockSums:
        # For the process, and every time: TF32 or bfloat16 products, which others may have asked
        # for since, would leave three digits.
        torch.set_float32_matmul_precision("highest")
        kind = torch.float32 if dtype is np.float32 else torch.float64
        x = torch.from_numpy(np.ascontiguousarray(block)).to(place)
        centred = x.to(kind) - torch.from_numpy(pilot).to(place, kind)
        offset = centred.sum(dim=0, dtype=torch.float64) / len(block)
        products = centred.T @ centred
        energies = (centred - offset.to(kind)).square().sum(dim=1)
        return BlockSums(
            offset.cpu().numpy(),
            ((products + products.T) / 2).cpu().numpy(),  # symmetric to the bit, as SYRK is
            energies.cpu().numpy(),
        )

    return take
