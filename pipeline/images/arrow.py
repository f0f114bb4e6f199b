"""Hugging Face datasets saved to disk, read through a memory map without the datasets package.

A dataset is a folder with ``state.json`` and Arrow stream files; a dictionary of them is a folder
with ``dataset_dict.json`` and a dataset per split.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from phistill.errors import SourceError

from .columns import Columns, image_bytes
from .local_files import read_file
from .source import ImageRecord, ImageSource, refuse_duplicates, splits_of_names

STATE, DICTIONARY = "state.json", "dataset_dict.json"
MAX_JSON_BYTES = 64 * 2**20


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``folder`` was written by ``save_to_disk``."""
    return (folder / STATE).is_file() or (folder / DICTIONARY).is_file()


class ArrowSource(ImageSource):
    """The rows of a saved dataset; a split's name is kept when one of the splits is held out."""

    kind = "arrow"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def records(self) -> list[ImageRecord]:
        parts = [""]
        if (self._root / DICTIONARY).is_file():
            parts = _strings(_json(self._root / DICTIONARY).get("splits"), self._root / DICTIONARY)
        records: list[ImageRecord] = []
        for part, split in zip(parts, splits_of_names(parts), strict=True):
            for name in _data_files(self._root / part):
                uri = f"{part}/{name}" if part else name
                file = self._file(uri)
                small = file.columns.small
                table = pa.Table.from_batches(file.batches).select(small)
                records += file.columns.records(
                    uri, table, file.starts[-1], self._root / uri, split
                )
        refuse_duplicates([record.id for record in records], str(self._root))
        return records

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if offset < 0:
            return read_file(self._root / uri)
        file = self._file(uri)
        if offset >= file.starts[-1]:
            raise SourceError(
                f"{self._root / uri} has {file.starts[-1]:,} rows; row {offset} was indexed. "
                "It changed."
            )
        number = bisect_right(file.starts, offset) - 1
        column = file.batches[number].column(file.columns.image)
        value = column[offset - file.starts[number]].as_py()
        return image_bytes(value, self._root / uri)

    def _file(self, uri: str) -> _File:
        with self._lock:
            if uri not in self._files:
                self._files[uri] = _File(self._root / uri)
            return self._files[uri]


class _File:
    """A mapped Arrow stream: its batches, and the row that each of them starts with."""

    def __init__(self, path: Path) -> None:
        try:
            options = pa.ipc.IpcReadOptions(use_threads=False)
            stream = pa.ipc.open_stream(pa.memory_map(str(path)), options=options)
            self.batches: list[Any] = list(stream)
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is named by the dataset and is gone. Put it back."
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} cannot be read as an Arrow stream: {error}.") from error
        self.columns = Columns.of(stream.schema, path)
        self.starts = [0]
        for batch in self.batches:
            self.starts.append(self.starts[-1] + batch.num_rows)
        self.batches = self.batches or [pa.RecordBatch.from_pylist([], schema=stream.schema)]


def _data_files(folder: Path) -> list[str]:
    state = folder / STATE
    if not state.is_file():
        raise SourceError(f"{folder} is named by {DICTIONARY} and holds no {STATE}.")
    content = _json(state)
    if content.get("_indices_data_files"):
        raise SourceError(
            f"{folder} was saved with an index of its rows. Save dataset.flatten_indices() instead."
        )
    files = content.get("_data_files")
    names = [f.get("filename") if isinstance(f, dict) else None for f in files or ()]
    return _strings(names, state)


def _json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file that may hold anything."""
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    try:
        if len(data) > MAX_JSON_BYTES:
            raise ValueError
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is no JSON object of a saved dataset.") from error
    return content


def _strings(names: Any, where: Path) -> list[str]:
    """Names that stay inside their folder; SourceError on anything else."""
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not plain or any(len(PurePosixPath(n).parts) != 1 or n in ("..", ".") for n in names):
        raise SourceError(f"{where} lists files or splits that are not plain names: {names!r}.")
    return list(names)
