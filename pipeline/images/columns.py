"""Which columns of a table hold images, labels, ids and splits, and the records they give.

Parquet tables and Hugging Face datasets on disk are read alike. Where the schema carries Hugging
Face's metadata, a class label is its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from phistill.errors import SourceError, UsageError

from .local_files import read_file
from .source import ImageRecord, refuse_duplicates, split_of

IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "content", "pixel_values")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "uri", "url")
LABEL_COLUMNS = ("label", "labels", "category", "class", "cls", "fine_label")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one table that matter."""

    image: str
    is_path: bool
    """The image column holds paths to files."""
    label: str | None
    label_names: tuple[str, ...]
    """Of an integer label, by number; empty when it is its own name."""
    id: str | None
    split: str | None

    @classmethod
    def of(cls, schema: pa.Schema, where: Path) -> Columns:
        """Choose by name and type; UsageError lists the columns when none holds images."""
        names = schema.names
        image, is_path = _image(schema, where)
        label = next((name for name in LABEL_COLUMNS if name in names), None)
        return cls(
            image,
            is_path,
            label,
            () if label is None else _label_names(schema, label),
            "id" if "id" in names else None,
            "split" if "split" in names else None,
        )

    @property
    def small(self) -> list[str]:
        """Columns that a listing reads."""
        wanted = [self.label, self.id, self.split, self.image if self.is_path else None]
        return [name for name in wanted if name is not None]

    def records(
        self, uri: str, table: pa.Table, num_rows: int, where: Path, split: str | None
    ) -> list[ImageRecord]:
        """A record per row; ``split`` is for all of them, unless the table has a column."""
        nothing: list[Any] = [None] * num_rows
        values = {name: table[name].to_pylist() for name in table.column_names}
        ids = [str(v) for v in values[self.id]] if self.id else _numbered(uri, num_rows)
        refuse_duplicates(ids, str(where))
        if self.is_path and None in values[self.image]:
            row = values[self.image].index(None)
            raise UsageError(f"{where}: row {row} of column {self.image!r} names no file.")
        labels = values[self.label] if self.label else nothing
        splits = values[self.split] if self.split else nothing
        return [
            ImageRecord(
                id=ids[row],
                uri=values[self.image][row] if self.is_path else uri,
                offset=-1 if self.is_path else row,
                label=self._label(labels[row]),
                split=split_of(splits[row], where) or split,
            )
            for row in range(num_rows)
        ]

    def _label(self, value: object) -> str | None:
        if value is None:
            return None
        if self.label_names and isinstance(value, int) and 0 <= value < len(self.label_names):
            return self.label_names[value]
        return str(value)


def image_bytes(value: object, table: Path) -> bytes:
    """The encoded image in a cell: bytes, or Hugging Face's struct of them; nothing is b"".

    A struct without bytes may name a file, relative to its table; SourceError when it is not there.
    """
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None and path:
            if (table.parent / path).is_file():
                return read_file(table.parent / path)
            raise SourceError(
                f"{table} names the file {path!r} and does not hold its bytes. Put the file beside "
                "the table, or write the table with the images embedded."
            )
        value = value.get("bytes")
    return value if isinstance(value, bytes) else b""


def _image(schema: pa.Schema, where: Path) -> tuple[str, bool]:
    for name in IMAGE_COLUMNS:
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name, False
    for name in (*PATH_COLUMNS, *IMAGE_COLUMNS):
        if name in schema.names and _is_text(schema.field(name).type):
            return name, True
    raise UsageError(
        f"{where} has the columns {', '.join(schema.names)}; none holds images "
        f"({', '.join(IMAGE_COLUMNS)} as bytes) or paths ({', '.join(PATH_COLUMNS)})."
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    kind = _unpacked(kind)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = _unpacked(kind)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _unpacked(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _label_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names from ``huggingface`` metadata: info.features.LABEL.names."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])
        names = features["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if plain else ()


def _numbered(uri: str, num_rows: int) -> Sequence[str]:
    return [f"{uri}#{row}" for row in range(num_rows)]
