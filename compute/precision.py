"""Types of the numbers that are multiplied: bfloat16 where the hardware has it, float32 in full.

There is one policy for float32 products and convolutions, the IEEE type's 24 bits of mantissa:
TF32 keeps 11 of them, no more than the float16 that features are stored as.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from phistill.errors import UsageError

from .devices import current_device

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FLOAT32_PRODUCTS = "ieee"
"""How float32 is multiplied, in torch's words; recorded beside what was computed."""

AUTOCASTS = ("float32", "bfloat16", "float16")
"""Types that a teacher's products may be taken in."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """A student's ``auto`` as bf16 where the device has bfloat16 units, else float32.

    Without such units bfloat16 products are no faster than float32's. On a GPU without them (older
    than Ampere) bf16 is refused with UsageError.
    """
    if precision == "auto":
        chosen = "bf16" if has_bfloat16(device) else "float32"
        units = "has" if chosen == "bf16" else "has no"
        log.debug("precision=auto: %s, because %s %s bfloat16 units", chosen, device, units)
        return chosen
    if precision == "bf16" and device.type == "cuda" and not has_bfloat16(device):
        raise UsageError(
            f"precision='bf16', but {device} has no bfloat16 units. Take precision='float32'."
        )
    return precision


def resolve_autocast(autocast: str | None, device: torch.device) -> str:
    """One of AUTOCASTS for a teacher: by default bfloat16 on GPUs that have it, else float32.

    UsageError for any other word, and for bfloat16 on a GPU without it.
    """
    if autocast is None:
        return "bfloat16" if device.type == "cuda" and has_bfloat16(device) else "float32"
    if autocast not in AUTOCASTS:
        raise UsageError(
            f"autocast={autocast!r} is not known; choose one of {', '.join(AUTOCASTS)}."
        )
    if autocast == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        raise UsageError(
            f"autocast='bfloat16', but {device} has no bfloat16 units. Take float32 or float16."
        )
    return autocast


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 have units of their own: GPUs since Ampere, CPUs with AMX."""
    import torch

    if device.type == "cuda":
        with current_device(device):  # which torch looks at
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # No public name tells; an older torch without this one trains in float32.
    has_matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and bool(has_matrix_units())


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Leave types as they are, whatever the caller's autocast says; may be traced and exported."""
    import torch

    return torch.autocast(device_type, enabled=False)


@contextlib.contextmanager
def products_in(dtype: str, device_type: str) -> Iterator[None]:
    """Take products in one of AUTOCASTS, whatever the caller's own autocast says; those that stay
    in float32 as FLOAT32_PRODUCTS says. The caller's settings are restored."""
    import torch

    mixed = dtype != "float32"
    cast = torch.autocast(
        device_type, dtype=getattr(torch, dtype) if mixed else None, enabled=mixed
    )
    with full_float32(), cast:
        yield


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """FLOAT32_PRODUCTS for this process, in matrix products and convolutions."""
    import torch

    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


@contextlib.contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """While entered, and if ``wanted``, only kernels that give the same bits every time.

    A GPU otherwise adds in the order in which its threads end. An operation without such a kernel
    raises RuntimeError, in torch's words. The caller's settings are restored.
    """
    import torch

    if not wanted:
        yield
        return
    # cuBLAS reads it when it makes its first handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    mode, benchmark = torch.get_deterministic_debug_mode(), cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark = benchmark


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPU, which has no wider type."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64
