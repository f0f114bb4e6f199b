"""Which columns of a table hold images, labels, ids and splits, and the records they give.

Parquet tables and Hugging Face datasets on disk are read alike. Where the schema carries Hugging
Face's metadata, a class label is its name.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phistill.errors import SourceError, UsageError, did_you_mean

from ..local_files import is_file, read_file
from ..source import NO_LABELS, image_records, refuse_duplicates
from .cells import id_texts, label_texts, split_texts

IMAGE_COLUMNS = (
    *("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "content", "pixel_values"),
    *("image_bytes", "image_data", "img_bytes"),
)
NO_IMAGES = re.compile(
    r"(^|_)(mask|seg|segmentation|semantic|instance|annotation|label|depth|normal|gt|audio|sound"
    r"|speech|video)(s|_?map|_?mask)*($|_)",
    re.IGNORECASE,
)
"""Columns of what is no photograph, or not seen at all: the images only where --member says so."""
PATH_COLUMNS = ("path", "file", "file_name", "filename", "uri", "url")
LABEL_COLUMNS = ("label", "labels", "category", "class", "cls", "fine_label")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


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
    def of(
        cls, schema: pa.Schema, where: Path, label_column: str = "", member: str = ""
    ) -> Columns:
        """Choose by name and type, or the column ``member``; UsageError lists the columns when none
        holds images."""
        names = schema.names
        image, is_path = _image(schema, where, member)
        if label_column and label_column not in (NO_LABELS, *names):
            raise UsageError(
                f"{where} has no column {label_column!r} for --label-column; it has "
                f"{', '.join(names)}.{did_you_mean(label_column, names)}"
            )
        if label_column == image:
            raise UsageError(f"{where}: --label-column {label_column!r} is the column of images.")
        wanted = (label_column,) if label_column else LABEL_COLUMNS
        by_name = {name.lower(): name for name in reversed(names)} | {name: name for name in names}
        label = next((by_name[name] for name in wanted if by_name.get(name, image) != image), None)
        chosen = cls(
            image,
            is_path,
            label,
            () if label is None else _label_names(schema, label),
            "id" if "id" in names else None,
            "split" if "split" in names else None,
        )
        for name in (image, *chosen.small):
            if names.count(name) > 1:
                raise UsageError(f"{where} has {names.count(name)} columns {name!r}; rename one.")
        return chosen

    @property
    def small(self) -> list[str]:
        """Columns that a listing reads."""
        wanted = [self.label, self.id, self.split, self.image if self.is_path else None]
        return [name for name in wanted if name is not None]

    def records(
        self, uri: str, table: pa.Table, num_rows: int, root: Path, split: str | None
    ) -> pa.Table:
        """A record per row of the table at ``uri`` below ``root``.

        ``split`` is for all rows that the table itself says nothing of; folders named ``key=value``
        stand for columns that the table lacks.
        """
        where = root / uri
        labels: Any = None
        splits: Any = split
        parts = _partitions(uri)
        if self.label:
            labels = label_texts(table[self.label], self.label_names, self.label, where)
        else:
            labels = next((parts[name] for name in LABEL_COLUMNS if name in parts), None)
        if self.split:
            splits = split_texts(table[self.split], self.split, where)
            splits = pc.fill_null(splits, split) if split else splits
        ids = id_texts(table[self.id], self.id, where) if self.id else _numbered(uri, num_rows)
        if self.id:
            refuse_duplicates(ids, str(where))
        if not self.is_path:
            rows = np.arange(num_rows)
            return image_records(ids, uri, offsets=rows, labels=labels, splits=splits)
        return image_records(
            ids, self._paths(uri, table[self.image], root), labels=labels, splits=splits
        )

    def _paths(self, uri: str, column: pa.ChunkedArray, root: Path) -> pa.ChunkedArray:
        """Where the files of a column of paths lie, relative to ``root``: by their own table or by
        the folder that was given."""
        try:
            paths = column.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{root / uri}: column {self.image!r} holds paths that are no text: {error}."
            ) from error
        nameless = pc.fill_null(pc.equal(paths, ""), True)
        if pc.any(nameless).as_py():
            row = pc.index(nameless, True).as_py()
            raise UsageError(f"{root / uri}: row {row} of column {self.image!r} names no file.")
        first = str(paths[0]) if len(paths) else ""
        if "://" in first:
            raise UsageError(
                f"{root / uri} names URLs in column {self.image!r} ({first[:60]!r}) and holds no "
                "images. Download them first, for example with img2dataset."
            )
        folder = PurePosixPath(uri).parent.as_posix()
        if folder != "." and is_file(root / folder / first):
            return pc.binary_join_element_wise(folder, paths, "/")
        if first and not is_file(root / first):
            raise UsageError(
                f"{root / uri}: row 0 of column {self.image!r} names {first[:80]!r}, and that is "
                f"no file below {root}. Put the files beside the table, or give the folder of both."
            )
        return paths


def image_bytes(value: object, table: Path) -> bytes:
    """The encoded image in a cell: bytes, or Hugging Face's struct of them; nothing is b"".

    A struct without bytes may name a file, relative to its table; SourceError when it is not there.
    """
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None and path:
            path = os.fsdecode(path) if isinstance(path, bytes) else str(path)
            if is_file(table.parent / path):
                return read_file(table.parent / path)
            raise SourceError(
                f"{table} names the file {path[:80]!r} and does not hold its bytes. Put the "
                "file beside the table, or write the table with the images embedded."
            )
        value = value.get("bytes")
    return value if isinstance(value, bytes) else b""


def _image(schema: pa.Schema, where: Path, member: str) -> tuple[str, bool]:
    """The column of images, by name and type, and whether it holds paths to them."""
    kinds = {field.name.lower(): field for field in reversed(list(schema))}
    if member:
        field = kinds.get(member.lower())
        if field is None:
            raise UsageError(
                f"{where} has no column {member!r} for --member; it has {', '.join(schema.names)}."
            )
        if not (_holds_bytes(field.type) or _is_text(field.type)):
            raise UsageError(f"{where}: column {field.name!r} holds {field.type}, and no images.")
        return field.name, not _holds_bytes(field.type)
    for name in IMAGE_COLUMNS:
        if name in kinds and _holds_bytes(kinds[name].type):
            return kinds[name].name, False
    embedded = [field.name for field in schema if _is_embedded(field.type)]
    pictures = [name for name in embedded if not NO_IMAGES.search(name)]
    if len(pictures) == 1:  # Hugging Face's images, whatever the column is called
        return pictures[0], False
    for names, is_path in ((PATH_COLUMNS, _is_path), (IMAGE_COLUMNS, _is_text)):
        for name in names:
            if name in kinds and is_path(kinds[name].type):
                return kinds[name].name, True
    several = f" Choose one of {', '.join(embedded)} with --member COLUMN." if embedded else ""
    raise UsageError(
        f"{where} has the columns {', '.join(schema.names)}; none holds images "
        f"({', '.join(IMAGE_COLUMNS)} as bytes) or paths ({', '.join(PATH_COLUMNS)}).{several}"
    )


def _is_embedded(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and (_holds_bytes(field.type) or pa.types.is_null(field.type))
        for field in kind
    )


def _is_path(kind: pa.DataType) -> bool:
    return _is_text(kind) or _holds_bytes(_unpacked(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return _is_embedded(kind)
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
        feature = features["info"]["features"][label]
        while isinstance(feature, list) or "feature" in feature:  # a list of classes
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return ()
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if plain else ()


def _numbered(uri: str, num_rows: int) -> pa.ChunkedArray:
    numbers = pa.array(range(num_rows), pa.int64()).cast(pa.string())
    return pa.chunked_array([pc.binary_join_element_wise(uri, numbers, "#")])


def _partitions(uri: str) -> dict[str, str | None]:
    """What hive folders say: ``label=cat/split=train/0.parquet``."""
    pairs = (part.partition("=") for part in PurePosixPath(uri).parts[:-1])
    return {
        key: None if value == NO_PARTITION else unquote(value) for key, sign, value in pairs if sign
    }
