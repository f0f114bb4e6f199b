"""Features in tars of npy files, a sample per row; the values are read in place."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache.format import names
from phistill.errors import UsageError

from ..images.local_files import read_part
from ..images.tars.members import Member, members
from .fields import Field, Values, field_name, field_of

MAX_LINE_BYTES = 2**16
"""Of a row's line in a tar."""


@dataclass(frozen=True, eq=False)
class TarValues:
    """One field of every sample of some tars."""

    field: Field
    places: Sequence[tuple[Path, Member]]
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        values = np.empty((len(positions), *self.row_shape), self.dtype)
        for place, position in enumerate(positions.tolist()):
            tar, member = self.places[position]
            row = _npy(tar, member)
            if row.shape != self.row_shape or row.dtype != self.dtype:
                raise UsageError(
                    f"{tar}: {member.name} is {row.dtype} {row.shape}, the first one was "
                    f"{self.dtype} {self.row_shape}."
                )
            values[place] = row
        return values


def _npy(tar: Path, member: Member) -> NDArray[Any]:
    """One npy file; its header is believed only where it fits the bytes that follow."""
    data = io.BytesIO(read_part(tar, member.offset, member.length))
    try:
        version = np.lib.format.read_magic(data)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(data)
        rest = data.getbuffer()[data.tell() :]
        if dtype.hasobject or len(rest) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(rest):,} bytes are no {dtype} {shape}")
        return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(f"{tar}: {member.name} is not a readable npy file: {error}.") from error


def tar_arrays(tars: Sequence[Path]) -> tuple[dict[Field, Values], pa.Table]:
    """Samples in the order of the tars; every sample must have the same fields."""
    samples: dict[tuple[Path, str], dict[str, Member]] = {}
    for tar in tars:
        for member in members(tar):
            if member.unread:
                continue
            folder, _, base = member.name.rpartition("/")
            key, _, extension = base.partition(".")
            samples.setdefault((tar, f"{folder}/{key}"), {})[extension] = member
    lines: list[dict[str, Any]] = []
    places: dict[Field, list[tuple[Path, Member]]] = {}
    for (tar, key), parts in samples.items():
        lines.append(_line(tar, key, parts.pop("json", None)))
        fields = {
            field: member
            for extension, member in parts.items()
            if extension.endswith(".npy") and (field := field_of(extension[: -len(".npy")]))
        }
        known = set(places) if len(lines) > 1 else set(fields)
        if not fields or set(fields) != known:
            names_here = ", ".join(field_name(field) + ".npy" for field in fields) or "none"
            raise UsageError(
                f"{tar}: sample {key!r} holds {names_here}; every sample needs the same fields "
                f"NAME.KIND.npy, KIND one of {', '.join(names.KINDS)}."
            )
        for field, member in fields.items():
            places.setdefault(field, []).append((tar, member))
    arrays: dict[Field, Values] = {}
    for field, rows in places.items():
        first = _npy(*rows[0])
        arrays[field] = TarValues(field, rows, first.shape, first.dtype)
    return arrays, pa.Table.from_pylist(lines)


def _line(tar: Path, key: str, member: Member | None) -> dict[str, Any]:
    if member is None:
        return {"id": key.lstrip("/")}
    try:
        if member.length > MAX_LINE_BYTES:
            raise ValueError(f"{member.length:,} bytes")
        line = json.loads(read_part(tar, member.offset, member.length))
        return {"id": str(line["id"]), **{k: v for k, v in line.items() if k != "id"}}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{tar}: {member.name} is not a line with an id ({error!r}).") from error
