"""Hugging Face datasets saved to disk, read through a memory map without the datasets package.

A dataset is a folder with ``state.json`` and Arrow stream files; a dictionary of them is a folder
with ``dataset_dict.json`` and a dataset per split. Files without a state, as the cache of the
datasets package has them, are read as they are.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from phistill.errors import SourceError, UsageError

from ..local_files import read_file
from ..source import DEFAULTS, NOTHING, ImageSource, SourceOptions, refuse_duplicates
from ..splits import splits_of_files
from .columns import Columns, image_bytes

STATE, DICTIONARY = "state.json", "dataset_dict.json"
MAGIC = b"ARROW1"
"""Of an Arrow file, which a stream does not have."""
MAX_JSON_BYTES = 64 * 2**20


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``folder`` itself was written by ``save_to_disk``."""
    return (folder / STATE).is_file() or (folder / DICTIONARY).is_file()


def dataset_files(root: Path, arrow: Sequence[str]) -> list[str]:
    """Which of the Arrow files below ``root`` are a dataset's, in its order; SourceError where a
    dataset says what is not so."""
    folders = {PurePosixPath(path).parent.as_posix() for path in arrow}
    parts = sorted(folder for folder in folders if (root / folder / STATE).is_file())
    if (root / DICTIONARY).is_file():
        parts = _strings(_json(root / DICTIONARY).get("splits"), root / DICTIONARY)
    elif (root / STATE).is_file():
        parts = ["."]
    if not parts:  # intermediate results of ``map`` lie in the same folder
        names = {path: PurePosixPath(path).name for path in arrow}
        return [path for path, name in names.items() if not name.startswith(("cache-", "tmp"))]
    return [
        name if part == "." else f"{part}/{name}"
        for part in parts
        for name in _data_files(root / part)
    ]


class ArrowSource(ImageSource):
    """The rows of Arrow streams; a split's name is kept when one of the splits is held out."""

    kind = "arrow"

    def __init__(
        self,
        root: Path,
        arrow: Sequence[str],
        options: SourceOptions = DEFAULTS,
        beside: Mapping[str, int] = NOTHING,
    ) -> None:
        """``arrow`` are paths below ``root``; ``beside`` is what else lies there."""
        self._root, self._arrow, self.options = root, list(arrow), options
        self.left_out = beside
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def records(self) -> pa.Table:
        splits = splits_of_files(self._arrow)
        records = pa.concat_tables(map(self._file_records, self._arrow, splits))
        if not records.num_rows:
            raise UsageError(f"{self._root}: the dataset has no rows.")
        refuse_duplicates(records["id"], str(self._root))
        return records

    def _file_records(self, uri: str, split: str | None) -> pa.Table:
        file = self._file(uri)
        table = pa.Table.from_batches(file.batches).select(file.columns.small)
        return file.columns.records(uri, table, file.starts[-1], self._root, split)

    @property
    def num_images(self) -> int:
        """Rows that hold an image."""
        try:
            files = [self._file(uri) for uri in self._arrow]
        except (SourceError, UsageError):
            return 0
        return sum(0 if file.columns.is_path else file.starts[-1] for file in files)

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
                self._files[uri] = _File(self._root / uri, self.options)
            return self._files[uri]


class _File:
    """A mapped Arrow stream, or an Arrow file as polars and Feather write it: its batches, and the
    row that each of them starts with."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        try:
            schema, self.batches = _batches(path)
            for batch in self.batches:
                batch.validate(full=True)  # its offsets point into a map of the file
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is named by the dataset and is gone. Put it back."
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{path} cannot be read as an Arrow stream or file: {error}."
            ) from error
        self.columns = Columns.of(schema, path, options.label_column, options.member)
        self.starts = [0]
        for batch in self.batches:
            self.starts.append(self.starts[-1] + batch.num_rows)
        self.batches = self.batches or [pa.RecordBatch.from_pylist([], schema=schema)]


def _batches(path: Path) -> tuple[pa.Schema, list[Any]]:
    options = pa.ipc.IpcReadOptions(use_threads=False)
    mapped = pa.memory_map(str(path))
    if mapped.read_at(len(MAGIC), 0) == MAGIC:
        file = pa.ipc.open_file(mapped, options=options)
        return file.schema, [file.get_batch(n) for n in range(file.num_record_batches)]
    stream = pa.ipc.open_stream(mapped, options=options)
    return stream.schema, list(stream)


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
