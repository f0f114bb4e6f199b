"""Cells of a table as text: ids, class labels, splits. What has no clear text is refused by row."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from phistill.errors import UsageError

from ..splits import split_of_value

LABEL_REMEDY = " Choose a column with --label-column NAME, or none with --label-column none."


def label_texts(
    column: pa.ChunkedArray, class_names: Sequence[str], name: str, where: Path
) -> pa.ChunkedArray:
    """Class labels as strings (n,), null where a row has none.

    A whole number below the number of ``class_names`` is such a name; -1 then says that the class
    is not known, as test sets of Hugging Face have it. A list counts where it holds one label.
    """

    def text(value: Any) -> str | None:
        if isinstance(value, list):
            if len(value) > 1:
                raise ValueError(f"{len(value)} labels, and an image has one class or none")
            value = value[0] if value else None
        if class_names and isinstance(value, int) and not isinstance(value, bool):
            if value == -1:
                return None
            if not 0 <= value < len(class_names):
                raise ValueError(f"class {value}, and the table names {len(class_names)} classes")
            return class_names[value]
        return cell_text(value)

    return _texts(column, text, name, where, LABEL_REMEDY)


def id_texts(column: pa.ChunkedArray, name: str, where: Path) -> pa.ChunkedArray:
    """Ids as strings (n,); UsageError where a row has none."""

    def text(value: Any) -> str:
        found = cell_text(value)
        if found is None:
            raise ValueError("no id")
        return found

    return _texts(column, text, name, where)


def split_texts(column: pa.ChunkedArray, name: str, where: Path) -> pa.ChunkedArray:
    """``train``, ``heldout`` or null (n,); UsageError lists the names that are known."""
    return _texts(column, split_of_value, name, where)


def cell_text(value: Any) -> str | None:
    """A name or a whole number as text; None where there is nothing; ValueError for all else."""
    if value is None or value is False or value is True:
        return None if value is None else str(value).lower()
    if isinstance(value, float | decimal.Decimal):
        if math.isnan(value):
            return None
        if math.isinf(value) or value != int(value):
            raise ValueError(f"{value}, which is no whole number")
        return str(int(value))
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{value[:20]!r}, which is no text") from error
    if not isinstance(value, str | int):
        raise ValueError(f"a {type(value).__name__} ({str(value)[:40]})")
    return str(value).strip() or None


def _texts(
    column: pa.ChunkedArray,
    text: Callable[[Any], str | None],
    name: str,
    where: Path,
    remedy: str = "",
) -> pa.ChunkedArray:
    """Each distinct value is read once where the type allows it; ``remedy`` is what to do about
    one that cannot be."""
    try:
        column.validate(full=True)  # text that is no UTF-8
    except pa.ArrowException as error:
        raise UsageError(f"{where}: column {name!r} cannot be read: {error}.") from error
    try:
        distinct: Any = pc.dictionary_encode(column)
    except pa.ArrowNotImplementedError:  # lists and structs have no dictionary
        cells = enumerate(column.to_pylist())
        values = [_read(value, text, row, name, where, remedy) for row, value in cells]
        return pa.chunked_array([pa.array(values, pa.string())])
    chunks, start = [], 0
    for chunk in distinct.chunks:
        known: Any = chunk.dictionary
        while pa.types.is_dictionary(known.type):
            known = known.dictionary_decode()
        texts: list[str | None] = []
        for number, value in enumerate(known.to_pylist()):
            try:
                texts.append(text(value))
            except ValueError:
                row = pc.index(chunk.indices, pa.scalar(number, chunk.indices.type)).as_py()
                if row >= 0:
                    _read(value, text, start + row, name, where, remedy)
                texts.append(None)
        names = pa.array(texts, pa.string())
        chunks.append(names.take(chunk.indices))
        start += len(chunk)
    found = pa.chunked_array(chunks, pa.string())
    if found.null_count and distinct.null_count:  # null is a value like another
        _read_null(distinct, text, name, where)
    return found


def _read_null(column: Any, text: Callable[[Any], str | None], name: str, where: Path) -> None:
    row = pc.index(column.is_null(), True).as_py()
    _read(None, text, row, name, where)


def _read(
    value: Any,
    text: Callable[[Any], str | None],
    row: int,
    name: str,
    where: Path,
    remedy: str = "",
) -> str | None:
    try:
        return text(value)
    except ValueError as error:
        raise UsageError(f"{where}: row {row} of column {name!r} holds {error}.{remedy}") from error
