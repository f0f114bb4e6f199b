"""Named arrays with JSON facts as one safetensors file that knows when it was changed.

safetensors alone loads a flipped bit as data, so the metadata carries a sha256 over every array and
every fact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save

Arrays = Mapping[str, Shaped[np.ndarray, "*_"]]


def seal(arrays: Arrays, facts: Mapping[str, Any]) -> bytes:
    """The file; the same arrays and facts give the same bytes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps({"facts": dict(facts), "sha256": _digest(contiguous, facts)}, sort_keys=True)
    return save(contiguous, metadata={"phistill": text})


def unseal(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and facts of seal(); ValueError when the bytes are anything else."""
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        stored = json.loads(header["__metadata__"]["phistill"])
        facts, digest = stored["facts"], stored["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a sealed safetensors file: {error}") from error
    if digest != _digest(arrays, facts):
        raise ValueError("its sha256 differs: it was changed after it was written")
    return arrays, facts


def _digest(arrays: Arrays, facts: Mapping[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
