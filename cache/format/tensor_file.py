"""Named arrays with JSON facts as one safetensors file that knows when it was changed.

safetensors alone loads a flipped bit as data, so the metadata carries the sha256 of the whole file,
header and padding too, taken while 64 zeros stood in the place of the digest.
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

_BLANK = b"0" * 64


def encode(arrays: Arrays, facts: Mapping[str, Any]) -> bytes:
    """The file; the same arrays and facts give the same bytes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps({"facts": dict(facts), "sha256": _BLANK.decode()}, sort_keys=True)
    data = save(contiguous, metadata={"phistill": text})
    place = data.rindex(_BLANK, 0, _header_end(data))
    return data[:place] + _digest(data, place) + data[place + len(_BLANK) :]


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and facts of ``encode``; ValueError when the bytes are anything else."""
    try:
        arrays, end = load(data), _header_end(data)
        stored = json.loads(json.loads(data[8:end])["__metadata__"]["phistill"])
        facts, digest = stored["facts"], stored["sha256"].encode()
        place = data.rindex(digest, 0, end)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"not a tensor file of phistill: {error}") from error
    if digest != _digest(data, place):
        raise ValueError("its sha256 differs: it was changed after it was written")
    return arrays, facts


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _digest(data: bytes, place: int) -> bytes:
    """sha256 (hex) of the file with zeros at ``place``."""
    total = hashlib.sha256(memoryview(data)[:place])
    total.update(_BLANK)
    total.update(memoryview(data)[place + len(_BLANK) :])
    return total.hexdigest().encode()
