"""A fitted normalizer as a file of its own, for use without phistill.

One safetensors file with float32 tensors mean (c,), W (c, c), Theta (c, c) and text metadata. It
conditions any encoder's output, a vision-language model's say, and needs ten lines to use:

    import torch
    from safetensors.torch import load_file

    class Normalizer(torch.nn.Module):
        def __init__(self, path):
            super().__init__()
            for name, tensor in load_file(path).items():
                self.register_buffer(name, tensor)
        def forward(self, x):  # (..., c) -> (..., c), every channel with variance 1
            return torch.nn.functional.linear(x.float() - self.mean, self.W)
        def inverse(self, y):
            return torch.nn.functional.linear(y, self.Theta, self.mean)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from phistill.cache import Cache
from phistill.cache.storage import publish
from phistill.errors import UsageError

from .fit.loading import load_normalizer
from .normalizer.normalizer import Normalizer


def export_bytes(normalizer: Normalizer, *, teacher: str = "", kind: str = "") -> bytes:
    """The file as bytes, always the same ones; the metadata says what it was fitted to."""
    arrays = {
        "mean": normalizer.mean,
        "W": normalizer.forward,
        "Theta": normalizer.inverse,
    }
    metadata = {
        "method": normalizer.method,
        "rotation": normalizer.rotation or "none",
        "teacher": teacher,
        "kind": kind,
        "formula": "y = W (x - mean); x = Theta y + mean",
    }
    tensors = {name: np.ascontiguousarray(a, dtype=np.float32) for name, a in arrays.items()}
    return _in_order(save(tensors, metadata=metadata))


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted, which safetensors writes in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[start:]


def export_normalizer(
    cache: Cache,
    teacher: str,
    out: Path,
    *,
    kind: str = "patches",
    method: str = "phi-s",
    **options: float,
) -> Normalizer:
    """Write one array's normalizer to the file `out`; returns it. Errors as load_normalizer.

    An earlier export is replaced; UsageError when `out` is any other file.
    """
    if out.is_file() and not _is_export(out):
        raise UsageError(f"{out} exists and is no exported normalizer. Choose another path.")
    normalizer = load_normalizer(cache, teacher, kind, method, **options)
    publish.publish_bytes(out, export_bytes(normalizer, teacher=teacher, kind=kind))
    return normalizer


def _is_export(path: Path) -> bool:
    try:
        with safe_open(path, "numpy") as file:
            return "formula" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
