"""A folder of features, opened: npy arrays mapped, or tars listed, and a table of their rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.cache.format import names
from phistill.cache.storage.parquet import read_table
from phistill.errors import SourceError, UsageError

from ..images.local_files import read_part
from .feature_tars import tar_arrays
from .fields import FACTS, LIST, PIXELS, TABLE, Field, Values, field_of

MAX_FACTS_BYTES = 2**20


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
        kinds: dict[str, list[str]] = {}
        for field in self.arrays:
            if field != PIXELS:
                kinds.setdefault(field[0], []).append(field[1])
        return kinds


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
        arrays, table = tar_arrays(tars)
        if ids is not None:
            raise UsageError("--ids goes with npy files; a tar says itself what its rows are.")
        return FeatureFiles(path, arrays, table, facts)
    table = read_ids(ids or _ids_file(path))
    arrays = dict[Field, Values]()
    for file in arrays_in_files:
        field = field_of(file.stem)
        if field is None:
            raise UsageError(
                f"{file} is not named NAME.KIND.npy, KIND one of {', '.join(names.KINDS)}."
            )
        arrays[field] = NpyValues.open(file, table.num_rows)
    return FeatureFiles(path, arrays, table, facts)


def _facts(path: Path) -> dict[str, Any]:
    file = path / FACTS
    if not file.exists():
        return {}
    try:
        facts = json.loads(read_part(file, 0, min(file.stat().st_size, MAX_FACTS_BYTES)))
        if not isinstance(facts["teachers"], dict):
            raise TypeError("teachers is not an object")
        if not all(isinstance(teacher, dict) for teacher in facts["teachers"].values()):
            raise TypeError("a teacher is not an object")
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


def grid_of(shape: tuple[int, ...], stated: tuple[int, int] | None, array: str) -> tuple[int, int]:
    """The grid (h, w) of patches with row shape (T, C) or (h, w, C); UsageError when unclear."""
    if len(shape) == 3 and (stated is None or stated == shape[:2]):
        return shape[0], shape[1]
    if len(shape) == 2:
        side = math.isqrt(shape[0])
        grid = stated or ((side, side) if side * side == shape[0] else None)
        if grid is not None and grid[0] * grid[1] == shape[0]:
            return grid
    raise UsageError(
        f"{array} has rows of shape {shape}; wanted (T, C) or (h, w, C) with h * w tokens"
        + (f" on the grid {stated}." if stated else ". State the grid with --grid NAME=H,W.")
    )
