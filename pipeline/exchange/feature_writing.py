"""Chosen rows of a cache written as npy arrays or WebDataset tars (``feature_files``)."""

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

from phistill.cache import Cache, RowReader
from phistill.cache.storage import publish
from phistill.cache.storage.positional import fsync_folder

from .fields import TABLE, Field, field_name

BLOCK_ROWS = 64

ExportProgress = Callable[[int, int], None]
"""Called with the rows written and the rows there are, over all arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What is written: ``fields`` of ``rows``, with a line of ``table`` for each row."""

    cache: Cache
    fields: Sequence[Field]
    rows: NDArray[np.int64]
    table: pa.Table
    unbiased: bool
    """Codes are decoded for training; see Cache.reader."""
    progress: ExportProgress | None

    def reader(self, field: Field) -> RowReader:
        return self.cache.reader(*field, unbiased=self.unbiased)

    def report(self, num_done: int) -> None:
        """Tell how many rows are written, counted once per field."""
        if self.progress is not None:
            self.progress(num_done, len(self.rows) * len(self.fields))


def write_npy(chosen: Selection, folder: Path) -> list[str]:
    """An array per field and the table; returns the names of the files."""
    files, num_done = [], 0
    for field in chosen.fields:
        reader = chosen.reader(field)
        shape = (len(chosen.rows), *reader.row_shape)
        name = f"{field_name(field)}.npy"
        with _published(folder / name) as file:
            header = {"descr": reader.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for start, stop in _blocks(0, len(chosen.rows)):
                block = reader.read(chosen.rows[start:stop])
                file.write(np.ascontiguousarray(block).data)
                num_done += stop - start
                chosen.report(num_done)
        files.append(name)
    sink = io.BytesIO()
    pq.write_table(chosen.table, sink, compression="zstd")
    publish.publish_bytes(folder / TABLE, sink.getvalue())
    return [*files, TABLE]


def write_tars(chosen: Selection, folder: Path, rows_per_tar: int) -> list[str]:
    """Tars of ``rows_per_tar`` samples; members carry no time and no owner, so bytes repeat."""
    rows, lines = chosen.rows, chosen.table.to_pylist()
    readers = {field: chosen.reader(field) for field in chosen.fields}
    files = []
    for number, first in enumerate(range(0, len(rows), rows_per_tar)):
        name = f"features-{number:06d}.tar"
        with (
            _published(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for start, stop in _blocks(first, min(first + rows_per_tar, len(rows))):
                values = {field: reader.read(rows[start:stop]) for field, reader in readers.items()}
                for slot in range(stop - start):
                    sample = {field: block[slot] for field, block in values.items()}
                    _add_sample(tar, start + slot, lines[start + slot], sample)
                chosen.report(stop * len(chosen.fields))
        files.append(name)
    return files


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most BLOCK_ROWS."""
    for first in range(start, stop, BLOCK_ROWS):
        yield first, min(first + BLOCK_ROWS, stop)


def _add_sample(
    tar: tarfile.TarFile, number: int, line: dict[str, Any], values: dict[Field, NDArray[Any]]
) -> None:
    key = f"{number:09d}"
    known = {name: value for name, value in line.items() if value is not None}
    _add(tar, f"{key}.json", json.dumps(known, sort_keys=True).encode())
    for field, array in values.items():
        data = io.BytesIO()
        np.lib.format.write_array(data, array, allow_pickle=False)
        _add(tar, f"{key}.{field_name(field)}.npy", data.getvalue())


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
        fsync_folder(path.parent)
    except OSError as error:
        raise publish.PublishError(
            f"{path} could not be written: {error.strerror or error}. Free some space or check the "
            "disk, then run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
