"""Features in files that other tools read: npy arrays, or WebDataset tars of them.

FOLDER/NAME.KIND.npy      (n, T, C) or (n, h, w, C) patches, (n, D) summary, (n, G, C) registers
FOLDER/pixels.npy         (n, S, S, 3) uint8, where there are any
FOLDER/ids.parquet        a line per row: id, and view, label, split, sha256, ... where known
FOLDER/ids.txt            or only the ids, one per line
FOLDER/features.json      what the teachers are; written last by ``export_features``

In a tar, KEY.NAME.KIND.npy and KEY.pixels.npy are one row's values, and KEY.json its line of the
table; without it KEY is the id. npy files are read without pickle.

n rows, T tokens on a grid (h, w), G registers, C and D widths, S side of the pixels.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache.format import names
from phistill.cache.format.parquet import read_table
from phistill.errors import SourceError, UsageError

from ..images.local_files import read_part
from ..images.tar import Member, members

FACTS = "features.json"
TABLE, LIST = "ids.parquet", "ids.txt"
MAX_FACTS_BYTES = 2**20
MAX_LINE_BYTES = 2**16
"""Of a row's line in a tar."""

Field = tuple[str, str]
"""(teacher, kind), or (pixels, pixels)."""

PIXELS: Field = (names.PIXELS, names.PIXELS)


class Values(Protocol):
    """One array: its row shape and dtype, and chosen rows of it."""

    @property
    def row_shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """(n, *row_shape) in the order of ``positions`` (n,)."""


@dataclass(frozen=True, eq=False)
class FeatureFiles:
    """What lies in a folder: arrays by field, a table with a line per row, and facts."""

    path: Path
    arrays: dict[Field, Values]
    table: pa.Table
    facts: dict[str, Any]
    """Of ``features.json``; empty without one."""

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def teachers(self) -> dict[str, list[str]]:
        """Kinds by teacher."""
        found: dict[str, list[str]] = {}
        for field in self.arrays:
            if field != PIXELS:
                found.setdefault(field[0], []).append(field[1])
        return found


def field_name(field: Field) -> str:
    """``NAME.KIND``, or ``pixels``."""
    return names.PIXELS if field == PIXELS else ".".join(field)


def field_of(stem: str) -> Field | None:
    """The field of ``NAME.KIND`` or ``pixels``; None for anything else."""
    if stem == names.PIXELS:
        return PIXELS
    name, _, kind = stem.rpartition(".")
    return (name, kind) if name and kind in names.KINDS else None


def open_features(path: Path, ids: Path | None = None) -> FeatureFiles:
    """The features of a folder; UsageError says what is missing or does not fit."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of features.")
    facts = _facts(path)
    tars = sorted(path.glob("*.tar"))
    arrays_in_files = sorted(path.glob("*.npy"))
    if bool(tars) == bool(arrays_in_files):
        raise UsageError(
            f"{path} must hold npy files named NAME.KIND.npy or tars of them, and not both; KIND "
            f"is one of {', '.join(names.KINDS)}."
        )
    if tars:
        arrays, table = _tar_arrays(tars)
        if ids is not None:
            raise UsageError("--ids goes with npy files; a tar says itself what its rows are.")
        return FeatureFiles(path, arrays, table, facts)
    table = read_ids(ids or _ids_file(path))
    found: dict[Field, Values] = {}
    for file in arrays_in_files:
        field = field_of(file.stem)
        if field is None:
            raise UsageError(
                f"{file} is not named NAME.KIND.npy, KIND one of {', '.join(names.KINDS)}."
            )
        found[field] = NpyValues.open(file, table.num_rows)
    return FeatureFiles(path, found, table, facts)


def _facts(path: Path) -> dict[str, Any]:
    file = path / FACTS
    if not file.exists():
        return {}
    try:
        facts = json.loads(read_part(file, 0, min(file.stat().st_size, MAX_FACTS_BYTES)))
        if not isinstance(facts["teachers"], dict):
            raise TypeError("teachers is not an object")
        return dict(facts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{file} is not what `phistill export-features` writes ({error!r}). Export again, or "
            "take the file away and pass --source."
        ) from error


def _ids_file(path: Path) -> Path:
    for name in (TABLE, LIST):
        if (path / name).exists():
            return path / name
    raise UsageError(
        f"{path} holds neither {TABLE} nor {LIST}: say which image each row is, with --ids FILE."
    )


def read_ids(path: Path) -> pa.Table:
    """A table of at least ``id`` from parquet, or from a text file with one id per line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    if path.suffix != ".parquet":
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is neither parquet nor text in UTF-8.") from error
        while lines and not lines[-1].strip():
            lines.pop()
        return pa.table({"id": pa.array(lines, pa.string())})
    try:
        table = read_table(data)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a readable parquet table: {error}") from error
    if "id" not in table.column_names:
        raise UsageError(f"{path} has no column 'id'; it has {', '.join(table.column_names)}.")
    return table.set_column(table.column_names.index("id"), "id", table["id"].cast(pa.string()))


@dataclass(frozen=True, eq=False)
class NpyValues:
    """An npy file, mapped."""

    path: Path
    array: NDArray[Any]

    @classmethod
    def open(cls, path: Path, num_rows: int) -> NpyValues:
        """Map the file; UsageError unless it has ``num_rows`` rows."""
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UsageError(f"{path} is not a readable npy file: {error}.") from error
        if not array.ndim or len(array) != num_rows:
            raise UsageError(
                f"{path} has shape {array.shape}, and there are {num_rows:,} ids: the first axis "
                "must count the rows."
            )
        return cls(path, array)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        order = np.argsort(positions, kind="stable")  # a file is read best from front to back
        values = np.empty((len(positions), *self.row_shape), self.dtype)
        values[order] = self.array[positions[order]]
        return values


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


def _tar_arrays(tars: Sequence[Path]) -> tuple[dict[Field, Values], pa.Table]:
    """Samples in the order of the tars; every sample must have the same fields."""
    samples: dict[tuple[Path, str], dict[str, Member]] = {}
    for tar in tars:
        for member in members(tar):
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
    for field, found in places.items():
        first = _npy(*found[0])
        arrays[field] = TarValues(field, found, first.shape, first.dtype)
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


def grid_of(shape: tuple[int, ...], stated: tuple[int, int] | None, what: str) -> tuple[int, int]:
    """The grid (h, w) of patches with row shape (T, C) or (h, w, C); UsageError when unclear."""
    if len(shape) == 3 and (stated is None or stated == shape[:2]):
        return shape[0], shape[1]
    if len(shape) == 2:
        side = math.isqrt(shape[0])
        grid = stated or ((side, side) if side * side == shape[0] else None)
        if grid is not None and grid[0] * grid[1] == shape[0]:
            return grid
    raise UsageError(
        f"{what} has rows of shape {shape}; wanted (T, C) or (h, w, C) with h * w tokens"
        + (f" on the grid {stated}." if stated else ". State the grid with --grid NAME=H,W.")
    )
