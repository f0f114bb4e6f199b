"""What the user says of the images: which are held out, and their labels.

``--holdout FILE`` lists ids. ``--labels FILE`` gives a label by key: an image's id (with or without
its suffix), a folder that it lies in, or the label that its source gave it, so that a table of
images, ``n01440764 -> tench`` and ``0 -> tench`` all are label maps.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from phistill.cache.storage.parquet import open_table, read_table
from phistill.errors import UsageError

from .splits import HELDOUT, TRAIN
from .tables.cells import cell_text

MAX_BYTES = 2**30
KEYS = (
    *("id", "key", "image_id", "image", "img", "file", "filename", "file_name", "path", "folder"),
    *("wnid", "index"),
)
LABELS = ("label", "labels", "class", "class_name", "name", "category", "cls")
FORMATS = "a .json, .jsonl, .csv, .tsv or .parquet file"
CLASS_INDEX = re.compile(r"n\d+$")
"""The first of the two names in ImageNet's class index."""


def hold_out(records: pa.Table, path: Path) -> pa.Table:
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
    ids: Any = records["id"]
    listed = pa.array(sorted(wanted), pa.string())
    heldout: Any = pc.is_in(ids, value_set=listed)
    unknown = wanted - set(ids.filter(heldout).to_pylist())
    for folder in sorted(line for line in wanted if line.endswith("/")):
        below = pc.starts_with(ids, folder)
        if pc.any(below).as_py():
            heldout, unknown = pc.or_(heldout, below), unknown - {folder}
    if unknown:
        unlisted = sorted(unknown)
        raise UsageError(
            f"--holdout {path} lists {len(unknown)} ids that the images do not have, for example "
            f"{unlisted[0]!r}; an id looks like {ids[0].as_py()!r}."
        )
    if not wanted:
        raise UsageError(f"--holdout {path} lists no id.")
    return _with(records, "split", pc.if_else(heldout, HELDOUT, TRAIN))


def _with(records: pa.Table, name: str, values: Any) -> pa.Table:
    """The records with another column under this name."""
    return records.set_column(records.column_names.index(name), name, values)


def label(records: pa.Table, path: Path) -> tuple[pa.Table, int]:
    """The records with the labels that ``path`` gives, and how many of them it gives none.

    UsageError when the file is no label map, or names none of the images.
    """
    labels = read_labels(path)
    parts = []
    for part in records.select(["id", "label"]).to_batches(max_chunksize=2**16):
        ids, before = (column.to_pylist() for column in part.columns)
        parts.append(pa.array(map(_label, ids, before, repeat(labels)), pa.string()))
    found = pa.chunked_array(parts, pa.string())
    if found.null_count == len(found):
        key, (first,) = next(iter(labels)), records.slice(0, 1).to_pylist()
        raise UsageError(
            f"--labels {path} names none of the images. It has, for example, {key!r}; an image has "
            f"the id {first['id']!r}"
            + (f" and the label {first['label']!r}." if first["label"] else ".")
        )
    return _with(records, "label", found), found.null_count


def read_labels(path: Path) -> dict[str, str]:
    """Label by key, both as text; UsageError when the file cannot be read as such."""
    readers = {
        ".json": _json,
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
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
        try:
            text = cell_text(value)
            if text is None or isinstance(value, bool):
                raise ValueError(repr(value))
        except ValueError as error:
            raise UsageError(
                f"--labels {path}: {str(key)!r} has {error}; a label is a name or a number."
            ) from error
        if labels.setdefault(str(key), text) != text:
            raise UsageError(f"--labels {path} gives {str(key)!r} two labels.")
    if not labels:
        raise UsageError(f"--labels {path} lists no label.")
    return labels


def _label(image_id: str, before: str | None, labels: dict[str, str]) -> str | None:
    path = PurePosixPath(image_id)
    folders = [part for parent in path.parents for part in (parent.as_posix(), parent.name)]
    bare = path.parent / path.stem
    for key in (image_id, bare.as_posix(), path.name, path.stem, before):
        if key is not None and key in labels:
            return labels[key]
    return next((labels[folder] for folder in folders if folder in labels), None)


def _json(path: Path) -> Iterable[tuple[Any, Any]]:
    """An object; or a list, whose positions are class numbers. ImageNet's class index gives two
    names for each class, of which the second is for people."""
    content = json.loads(path.read_text("utf-8-sig"))
    if isinstance(content, list):
        return list(enumerate(content))
    if not isinstance(content, dict):
        raise UsageError(f"--labels {path} is neither an object nor a list of class names.")
    return [(key, value[1] if _is_class_index(value) else value) for key, value in content.items()]


def _is_class_index(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and bool(CLASS_INDEX.match(str(value[0])))


def _jsonl(path: Path) -> Iterable[tuple[Any, Any]]:
    """An object per line, as ``metadata.jsonl`` of an image folder."""
    lines = [json.loads(line) for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    if not all(isinstance(line, dict) for line in lines):
        raise UsageError(f"--labels {path} has lines that are no objects.")
    names = list(lines[0]) if lines else []
    key, value = _columns([name.lower() for name in names])
    if key is None or value is None:
        raise _no_columns(path, names)
    return [(line.get(names[key]), line.get(names[value])) for line in lines]


def _no_columns(path: Path, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"--labels {path} has the columns {', '.join(names[:20])}; wanted one of {', '.join(KEYS)} "
        f"and one of {', '.join(LABELS)} (or two columns without a header)."
    )


def _csv(path: Path) -> Iterable[tuple[Any, Any]]:
    """A line per key; a header where its names are known, else the first two columns."""
    text = path.read_text("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=_delimiter(path)) if row]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    key, value = _columns(header)
    if key is not None and value is not None:
        rows = rows[1:]
    elif len(header) > 2:  # which of them is the label?
        raise _no_columns(path, header)
    else:
        key, value = 0, 1
    for number, row in enumerate(rows, 1):
        if len(row) <= max(key, value):
            sign = "a tab" if _delimiter(path) == "\t" else "a comma"
            raise UsageError(
                f"--labels {path}: line {number} has {len(row)} columns, not two with {sign} "
                "between them."
            )
    return [(row[key].strip(), row[value].strip()) for row in rows]


def _parquet(path: Path) -> Iterable[tuple[Any, Any]]:
    with open_table(path) as table:
        names = list(table.schema_arrow.names)
    key, value = _columns([name.lower() for name in names])
    if key is None or value is None:
        raise _no_columns(path, names)
    table = read_table(path, [names[key], names[value]])
    return zip(table[names[key]].to_pylist(), table[names[value]].to_pylist(), strict=True)


def _columns(names: Sequence[str]) -> tuple[int | None, int | None]:
    """Positions of the key and of the label; the same column is never both."""
    key = next((names.index(name) for name in KEYS if name in names), None)
    value = next((names.index(name) for name in LABELS if name in names), None)
    return key, value


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
