"""What the user says of the images: which are held out, and their labels.

``--holdout FILE`` lists ids. ``--labels FILE`` gives a label by key: an image's id (with or without
its suffix), a folder that it lies in, or the label that its source gave it, so that a table of
images, ``n01440764 -> tench`` and ``0 -> tench`` all are label maps.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from phistill.cache.storage.parquet import open_table, read_table
from phistill.errors import UsageError

from .source import ImageRecord

MAX_BYTES = 2**30
KEYS = ("id", "key", "image", "file", "filename", "file_name", "path", "folder", "wnid", "index")
LABELS = ("label", "labels", "class", "class_name", "name", "category", "cls")
FORMATS = "a .json, .csv, .tsv or .parquet file"


def hold_out(records: Sequence[ImageRecord], path: Path) -> list[ImageRecord]:
    """The records with a split: held out are those whose id ``path`` lists, the rest train.

    One id per line; a line that ends in ``/`` holds out every id below it; # begins a comment.
    UsageError when a line names nothing that the source has.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--holdout {path} cannot be read as a text file of ids, one per line."
        ) from error
    wanted = {line for line in lines if line and not line.startswith("#")}
    folders = tuple(sorted(line for line in wanted if line.endswith("/")))
    ids = {record.id for record in records}
    heldout = {name for name in ids if name in wanted or name.startswith(folders)}
    unknown = sorted(
        line
        for line in wanted - ids
        if not (line in folders and any(name.startswith(line) for name in heldout))
    )
    if unknown:
        raise UsageError(
            f"--holdout {path} lists {len(unknown)} ids that the images do not have, for example "
            f"{unknown[0]!r}; an id looks like {records[0].id!r}."
        )
    if not heldout:
        raise UsageError(f"--holdout {path} lists no id.")
    return [replace(e, split="heldout" if e.id in heldout else "train") for e in records]


def label(records: Sequence[ImageRecord], path: Path) -> tuple[list[ImageRecord], int]:
    """The records with the labels that ``path`` gives, and how many of them it gives none.

    UsageError when the file is no label map, or names none of the images.
    """
    labels = read_labels(path)
    labelled = [replace(record, label=_label(record, labels)) for record in records]
    missing = sum(record.label is None for record in labelled)
    if missing == len(records):
        key = next(iter(labels))
        raise UsageError(
            f"--labels {path} names none of the images. It has, for example, {key!r}; an image has "
            f"the id {records[0].id!r}"
            + (f" and the label {records[0].label!r}." if records[0].label else ".")
        )
    return labelled, missing


def read_labels(path: Path) -> dict[str, str]:
    """Label by key, both as text; UsageError when the file cannot be read as such."""
    readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise UsageError(f"--labels {path} is not {FORMATS}.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UsageError(f"--labels {path} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        pairs = list(reader(path))
    except UsageError:
        raise
    except Exception as error:  # three parsers, each with its own errors
        raise UsageError(f"--labels {path} cannot be read: {error}.") from error
    labels: dict[str, str] = {}
    for key, value in pairs:
        text = _text(value)
        if labels.setdefault(str(key), text) != text:
            raise UsageError(f"--labels {path} gives {str(key)!r} two labels.")
    if not labels:
        raise UsageError(f"--labels {path} lists no label.")
    return labels


def _label(record: ImageRecord, labels: dict[str, str]) -> str | None:
    path = PurePosixPath(record.id)
    folders = [part for parent in path.parents for part in (parent.as_posix(), parent.name)]
    for key in (record.id, path.with_suffix("").as_posix(), path.name, path.stem, record.label):
        if key is not None and key in labels:
            return labels[key]
    return next((labels[folder] for folder in folders if folder in labels), None)


def _json(path: Path) -> Iterable[tuple[Any, Any]]:
    """An object; or a list, whose positions are class numbers. A list as a value, as in ImageNet's
    class index, ends in the name."""
    content = json.loads(path.read_text("utf-8-sig"))
    if isinstance(content, list):
        return list(enumerate(content))
    if not isinstance(content, dict):
        raise UsageError(f"--labels {path} is neither an object nor a list of class names.")
    return [(key, value[-1] if isinstance(value, list) and value else value)
            for key, value in content.items()]  # fmt: skip


def _csv(path: Path) -> Iterable[tuple[Any, Any]]:
    """A line per key; a header where its names are known, else the first two columns."""
    text = path.read_text("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=_delimiter(path)) if row]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    key, value = _columns(header)
    if key is None or value is None:
        key, value = 0, 1
    else:
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) <= max(key, value):
            raise UsageError(f"--labels {path}: line {number} has {len(row)} columns, not two.")
    return [(row[key].strip(), row[value].strip()) for row in rows]


def _parquet(path: Path) -> Iterable[tuple[Any, Any]]:
    with open_table(path) as table:
        names = list(table.schema_arrow.names)
    key, value = _columns([name.lower() for name in names])
    if key is None or value is None:
        raise UsageError(
            f"--labels {path} has the columns {', '.join(names)}; wanted one of {', '.join(KEYS)} "
            f"and one of {', '.join(LABELS)}."
        )
    table = read_table(path, [names[key], names[value]])
    return zip(table[names[key]].to_pylist(), table[names[value]].to_pylist(), strict=True)


def _columns(names: Sequence[str]) -> tuple[int | None, int | None]:
    """Positions of the key and of the label; the same column is never both."""
    key = next((names.index(name) for name in KEYS if name in names), None)
    value = next((names.index(name) for name in LABELS if name in names), None)
    return key, value


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise UsageError(f"a label is a name or a number, not {str(value)[:40]!r}.")
    return str(value)
