"""Where images come from: a folder, a list of files, or a parquet table.

A source lists its images once (an entry each, in a fixed order) and reads the bytes of one when
asked. Names from a source are only ever identifiers; nothing is written under them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ..cache.errors import SourceError, UsageError
from ..cache.tables import read_row_group, read_table

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "jfif", "jp2", "jpeg", "jpg"),
        *("pgm", "png", "ppm", "tif", "tiff", "webp"),
    )
)
IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "content")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "uri", "url")
LABEL_COLUMNS = ("label", "category", "class", "cls")
SPLITS = {"train": "train", "training": "train"}
HELDOUT_NAMES = ("heldout", "held-out", "held_out", "val", "valid", "validation", "test", "holdout")
CACHED_ROW_GROUPS = 4
NUM_TRIES = 3
"""A read error may be a hiccup of a network file system; it is tried this often."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source."""

    id: str
    uri: str
    """Relative to the source's root."""
    offset: int = -1
    """Byte offset or row number inside ``uri``; -1 for a whole file."""
    length: int = -1
    label: str | None = None
    split: str | None = None
    """``train`` or ``heldout`` when the source says so."""


class Source(Protocol):
    """Images that can be listed and read. ``read`` is called from several threads."""

    kind: str

    def entries(self) -> list[Entry]: ...

    def read(self, uri: str, offset: int, length: int) -> bytes: ...


def open_source(path: str | Path) -> Source:
    """A source by what ``path`` is: a folder, a ``.parquet`` file, or a text file of paths."""
    path = Path(path)
    if path.is_dir():
        tables = sorted(path.glob("*.parquet"))
        return ParquetSource(path, tables) if tables else FolderSource(path)
    if not path.is_file():
        raise UsageError(
            f"images {str(path)!r} do not exist. Give a folder, a parquet file, or a text file "
            "with one path per line."
        )
    if path.suffix == ".parquet":
        return ParquetSource(path.parent, [path])
    if path.suffix.lower() in SUFFIXES:
        raise UsageError(f"{path} is one image. Give the folder that holds the images.")
    return ListSource(path)


class FolderSource:
    """Every image file below a folder; the label is the folder it lies in."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> list[Entry]:
        found = [
            Path(folder, name).relative_to(self._root)
            for folder, _, names in os.walk(self._root)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        ]
        if not found:
            raise UsageError(
                f"{self._root} holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Give another folder, or a parquet file."
            )
        labelled = any(path.parent.parts for path in found)
        return [
            Entry(
                id=path.as_posix(),
                uri=path.as_posix(),
                label=path.parent.as_posix() if labelled else None,
            )
            for path in sorted(found)
        ]

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return _read_file(self._root / uri)


class ListSource:
    """A text file with one path per line, relative to the file's own folder."""

    kind = "list"

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        try:
            lines = [line.strip() for line in self._path.read_text("utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self._path} is neither an image folder, a parquet file nor a text file of paths."
            ) from error
        paths = [line for line in lines if line and not line.startswith("#")]
        if not paths:
            raise UsageError(f"{self._path} lists no image.")
        _refuse_duplicates(paths, str(self._path))
        return [Entry(id=path, uri=path) for path in sorted(paths)]

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return _read_file(self._path.parent / uri)


class ParquetSource:
    """Parquet tables with encoded images in a column (bytes, or Hugging Face's struct of bytes)."""

    kind = "parquet"

    def __init__(self, root: Path, tables: Sequence[Path]) -> None:
        self._root, self._tables = root, list(tables)
        self._columns: dict[str, tuple[str, bool]] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._starts: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        return [entry for table in self._tables for entry in self._table_entries(table)]

    def _table_entries(self, table: Path) -> list[Entry]:
        uri = table.relative_to(self._root).as_posix()
        try:
            schema = pq.read_schema(table)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{table} cannot be read as parquet: {error}.") from error
        names = schema.names
        column = self._image_column(uri, schema)
        paths = column[1]
        label = next((name for name in LABEL_COLUMNS if name in names), None)
        keys = "id" if "id" in names else None
        wanted = [name for name in (label, keys, "split" if "split" in names else None) if name]
        data = read_table(table, [*wanted, *([column[0]] if paths else [])])
        values = {name: data[name].to_pylist() for name in data.column_names}
        ids = [str(v) for v in values[keys]] if keys else _numbered(uri, data.num_rows, table)
        _refuse_duplicates(ids, str(table))
        labels = values[label] if label else [None] * len(ids)
        splits = values.get("split", [None] * len(ids))
        return [
            Entry(
                id=ids[row],
                uri=values[column[0]][row] if paths else uri,
                offset=-1 if paths else row,
                label=None if labels[row] is None else str(labels[row]),
                split=_split(splits[row], table),
            )
            for row in range(len(ids))
        ]

    def _image_column(self, uri: str, schema: pa.Schema) -> tuple[str, bool]:
        """Name of the column that holds the images, and whether it holds paths to them."""
        for name in IMAGE_COLUMNS:
            if name in schema.names:
                kind = schema.field(name).type
                binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
                if binary or pa.types.is_struct(kind):
                    self._columns[uri] = (name, pa.types.is_struct(kind))
                    return name, False
        for name in PATH_COLUMNS:
            if name in schema.names and pa.types.is_string(schema.field(name).type):
                return name, True
        raise UsageError(
            f"{self._root / uri} has the columns {', '.join(schema.names)}; none holds images "
            f"({', '.join(IMAGE_COLUMNS)} as bytes, or {', '.join(PATH_COLUMNS)} as paths)."
        )

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if offset < 0:
            return _read_file(self._root / uri)
        with self._lock:
            value = self._value(uri, offset)
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            return b""
        assert isinstance(value, bytes), "the column was checked to be binary"
        return value

    def _value(self, uri: str, row: int) -> object:
        table = self._root / uri
        if uri not in self._starts:
            meta = _retried(lambda: pq.read_metadata(table), table)
            sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            self._starts[uri] = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
            self._image_column(uri, pq.read_schema(table))
        starts = self._starts[uri]
        if not 0 <= row < starts[-1]:
            raise SourceError(
                f"{table} has {starts[-1]:,} rows; row {row} was indexed. It changed."
            )
        group = next(g for g in range(len(starts) - 1) if starts[g] <= row < starts[g + 1])
        if (uri, group) not in self._groups:
            name = self._columns[uri][0]
            read = _retried(lambda: read_row_group(table, group, [name]), table)
            self._groups[uri, group] = read[name]
            if len(self._groups) > CACHED_ROW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((uri, group))
        return self._groups[uri, group][row - starts[group]].as_py()


T = TypeVar("T")


def _retried(action: Callable[[], T], path: Path) -> T:
    for attempt in range(NUM_TRIES):
        try:
            return action()
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} was indexed and is gone. Put it back, or make a new cache."
            ) from error
        except OSError as error:
            failure = error
            time.sleep(0.1 * 4**attempt)
    raise SourceError(
        f"{path} cannot be read ({failure.strerror or failure}), tried {NUM_TRIES} times. "
        "Nothing was recorded for it; mend the disk and run the same command again."
    )


def _read_file(path: Path) -> bytes:
    return _retried(path.read_bytes, path)


def _numbered(uri: str, num_rows: int, table: Path) -> list[str]:
    total = num_rows or pq.read_metadata(table).num_rows
    return [f"{uri}#{row}" for row in range(total)]


def _split(value: object, table: Path) -> str | None:
    if value is None:
        return None
    text = str(value).lower()
    if text in HELDOUT_NAMES:
        return "heldout"
    if text in SPLITS:
        return "train"
    raise UsageError(
        f"{table}: split {value!r} is not known; write train or one of {', '.join(HELDOUT_NAMES)}."
    )


def _refuse_duplicates(ids: Sequence[str], what: str) -> None:
    if len(set(ids)) != len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise UsageError(
            f"{what} lists {twice!r} {count} times; every image needs an id of its own."
        )
