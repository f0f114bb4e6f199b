"""Keep freed memory in the process while a student learns.

A step on a CPU frees what it allocated, hundreds of megabytes of activations, gradients and
targets, and the next step wants the same sizes again. glibc gives the end of its heap back to the
kernel once more than M_TRIM_THRESHOLD bytes are free there, and blocks beyond M_MMAP_THRESHOLD at
once; the kernel then hands the pages out again one fault at a time, each filled with zeros. Whether
that happens depends on which block lies last: equal steps took none or 40,000 faults (docs/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import torch

# <malloc.h>, not to be changed without breaking every program.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4

MOST = 2**31 - 1
"""mallopt takes an int: the end of the heap is kept until 2 GiB of it are free."""

AFTER = {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20, M_MMAP_MAX: 65536}
"""Where glibc's own adjustment ends, which any mallopt call switches off; and its default."""


@contextlib.contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[bool]:
    """Keep the heap of this process as large as it grew; given back on leaving.

    Yields whether it does: not on another C library or device, nor where the environment already
    says how malloc should behave (``MALLOC_*``, ``GLIBC_TUNABLES``).
    """
    mallopt = _glibc_function("mallopt") if device.type == "cpu" and not _chosen() else None
    if mallopt is None:
        yield False
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, MOST)
    try:
        yield True
    finally:
        for parameter, value in AFTER.items():
            mallopt(parameter, value)
        trim = _glibc_function("malloc_trim")
        if trim is not None:
            trim(0)


def _chosen() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)


def _glibc_function(name: str) -> ctypes._NamedFuncPointer | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), name, None)
