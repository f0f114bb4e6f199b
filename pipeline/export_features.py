"""The verb ``export_features``: a cache's features as npy arrays or WebDataset tars.

The values are those of the cache, bit for bit; ``import_features`` makes a cache of them again.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..cache import Cache, names, publish
from ..cache.errors import IncompleteCache, UsageError
from ..cache.info import DTYPES
from ..cache.split import HELDOUT, TRAIN, Split
from .feature_files import FACTS, PIXELS, TABLE, Field, field_name

FORMATS = ("npy", "webdataset")
BLOCK_ROWS = 64
ROWS_PER_TAR = 1000

ExportProgress = Callable[[int, int], None]
"""Called with the rows written and the rows there are, over all arrays."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    path: Path
    num_rows: int
    files: tuple[str, ...]


def export_features(
    cache: Cache,
    out: Path | str,
    *,
    format: str = "npy",
    teachers: Sequence[str] = (),
    split: Split = "all",
    pixels: bool = False,
    rows_per_tar: int = ROWS_PER_TAR,
    progress: ExportProgress | None = None,
) -> ExportReport:
    """Write the rows that every chosen teacher has into a new folder, in the cache's order.

    ``pixels`` adds the student's pixels. The facts are written last: a folder without them is
    written again. Raises IncompleteCache when there is no such row.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r} is not one of {', '.join(FORMATS)}.")
    if rows_per_tar < 1:
        raise UsageError(f"rows_per_tar={rows_per_tar} must be at least 1.")
    chosen = list(teachers or cache.teachers)
    if not chosen:
        raise UsageError(f"{cache.location} has no teacher whose features could be exported.")
    fields: list[Field] = [(name, kind) for name in chosen for kind in cache.teacher(name).kinds]
    if pixels:
        cache.shapes(names.PIXELS)  # UsageError when none are stored
        fields.append(PIXELS)
    rows = cache.rows(chosen, split)
    if not rows.size:
        raise IncompleteCache(
            f"{cache.location} has no {split} row that every one of {', '.join(chosen)} committed."
        )
    folder = Path(out)
    _require_new(folder)
    table = _table(cache, chosen, rows)
    write = _write_npy if format == "npy" else _write_tars
    files = write(cache, folder, fields, rows, table, rows_per_tar, progress)
    facts = json.dumps(_facts(cache, chosen, len(rows)), indent=1, sort_keys=True)
    publish.publish_bytes(folder / FACTS, facts.encode())
    return ExportReport(folder, len(rows), (*files, FACTS))


def _require_new(folder: Path) -> None:
    if folder.is_file():
        raise UsageError(f"{folder} is a file. Choose a folder that does not exist yet.")
    if not folder.exists():
        return
    found = sorted(entry.name for entry in folder.iterdir())
    if FACTS in found:
        raise UsageError(f"{folder} holds exported features already. Choose another folder.")
    ends = (".npy", ".tar", TABLE, publish.TEMPORARY_SUFFIX)
    if others := [name for name in found if not name.endswith(ends)]:
        raise UsageError(
            f"{folder} exists and holds other things ({', '.join(others[:3])}). "
            "Choose a path that does not exist yet."
        )
    for name in found:  # an export that was stopped
        (folder / name).unlink()


def _facts(cache: Cache, teachers: Sequence[str], num_rows: int) -> dict[str, Any]:
    info = cache.info
    given = "split" in cache.index().column_names
    return {
        "format": 1,
        "num_rows": num_rows,
        "order": "random",
        "seed": info.seed,
        "holdout": info.holdout,
        "split": "given" if given else "hash",
        "views": list(info.views),
        "teachers": {
            name: {"grid": list(teacher.grid), "identity": teacher.identity}
            for name in teachers
            for teacher in [cache.teacher(name)]
        },
    }


def _table(cache: Cache, teachers: Sequence[str], rows: NDArray[np.int64]) -> pa.Table:
    """A line per row: id, view, label?, split, and what the commit records say of the image."""
    index: Any = cache.index()
    lines = np.searchsorted(index["row"].to_numpy(), rows)
    part = index.take(pa.array(lines))
    columns = {"row": pa.array(rows), "id": part["id"], "view": part["view"]}
    if "label" in part.column_names:
        columns["label"] = part["label"]
    heldout = np.isin(rows, cache.rows(teachers, HELDOUT))
    columns["split"] = pa.array([HELDOUT if held else TRAIN for held in heldout])
    owner = cache.owners[0]
    records, shard_rows = cache.commits(owner), cache.info.shard_rows
    places = [(records[row // shard_rows].images, row % shard_rows) for row in rows.tolist()]
    columns["sha256"] = pa.array([images.sha256[slot] for images, slot in places], pa.string())
    sizes = [images.size[slot] for images, slot in places]
    boxes = [images.box[slot] for images, slot in places]
    columns["size"] = pa.array(sizes, pa.list_(pa.int64()))
    columns["box"] = pa.array(boxes, pa.list_(pa.int64()))
    return pa.table(columns)


def _blocks(cache: Cache, field: Field, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    reader = cache.reader(*field)
    for start in range(0, len(rows), BLOCK_ROWS):
        yield reader.read(rows[start : start + BLOCK_ROWS])


def _write_npy(
    cache: Cache,
    folder: Path,
    fields: Sequence[Field],
    rows: NDArray[np.int64],
    table: pa.Table,
    rows_per_tar: int,
    progress: ExportProgress | None,
) -> list[str]:
    files, done = [], 0
    for field in fields:
        shape = (len(rows), *cache.shapes(field[0])[field[1]])
        name = f"{field_name(field)}.npy"
        with _published(folder / name) as file:
            header = {"descr": DTYPES[field[1]].str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for block in _blocks(cache, field, rows):
                file.write(np.ascontiguousarray(block).data)
                done += len(block)
                if progress is not None:
                    progress(done, len(rows) * len(fields))
        files.append(name)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    publish.publish_bytes(folder / TABLE, sink.getvalue())
    return [*files, TABLE]


def _write_tars(
    cache: Cache,
    folder: Path,
    fields: Sequence[Field],
    rows: NDArray[np.int64],
    table: pa.Table,
    rows_per_tar: int,
    progress: ExportProgress | None,
) -> list[str]:
    """Tars of ``rows_per_tar`` samples; members carry no time and no owner, so bytes repeat."""
    lines = table.to_pylist()
    readers = {field: cache.reader(*field) for field in fields}
    files = []
    for number, first in enumerate(range(0, len(rows), rows_per_tar)):
        name = f"features-{number:06d}.tar"
        with (
            _published(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for start in range(first, min(first + rows_per_tar, len(rows)), BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, first + rows_per_tar, len(rows))
                values = {f: reader.read(rows[start:stop]) for f, reader in readers.items()}
                for slot in range(stop - start):
                    key = f"{start + slot:09d}"
                    line = {k: v for k, v in lines[start + slot].items() if v is not None}
                    _add(tar, f"{key}.json", json.dumps(line, sort_keys=True).encode())
                    for field, block in values.items():
                        data = io.BytesIO()
                        np.lib.format.write_array(data, block[slot], allow_pickle=False)
                        _add(tar, f"{key}.{field_name(field)}.npy", data.getvalue())
                if progress is not None:
                    progress(stop * len(fields), len(rows) * len(fields))
        files.append(name)
    return files


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@contextmanager
def _published(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete and on the disk."""
    temporary = path.with_name(path.name + publish.TEMPORARY_SUFFIX)
    publish.make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        publish.fsync_folder(path.parent)
    except OSError as error:
        raise publish.PublishError(
            f"{path} could not be written: {error.strerror or error}. Free some space or check the "
            "disk, then run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
