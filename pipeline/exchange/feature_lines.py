"""What is known of the rows of imported features."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from phistill.cache.format.json_document import is_sha256
from phistill.errors import UsageError

from ..images.source import refuse_duplicates


class ImageLines:
    """The table of the features' rows, found by (id, view)."""

    def __init__(self, table: pa.Table) -> None:
        if "id" not in table.column_names or not table.num_rows:
            raise UsageError("the features have no rows.")
        if table["id"].null_count:
            raise UsageError(f"{table['id'].null_count} of the rows have no id.")
        self.ids = [str(name) for name in table["id"].to_pylist()]
        self.views = [0] * len(self.ids)
        if "view" in table.column_names:
            column = table["view"]
            if not pa.types.is_integer(column.type) or column.null_count:
                raise UsageError("view must be a whole number in every row of the table.")
            self.views = column.to_pylist()
        self.columns = {name: table[name].to_pylist() for name in table.column_names}
        pairs = list(zip(self.ids, self.views, strict=True))
        if "" in self.ids or min(self.views) < 0:
            raise UsageError("an id is empty, or a view below 0.")
        if len(set(self.views)) == 1:
            refuse_duplicates(self.ids, "the table of ids")
        elif len(set(pairs)) < len(pairs):
            raise UsageError("the table of ids lists a view of an image twice.")
        self.line = {pair: number for number, pair in enumerate(pairs)}

    @property
    def num_views(self) -> int:
        return max(self.views) + 1

    def get(self, column: str, line: int) -> Any:
        """A value of the table; None where it has no such column."""
        return self.columns[column][line] if column in self.columns else None

    def image(self, line: int) -> tuple[str | None, Any, Any]:
        """sha256, size and box of a line's image, where the table has them; no line is -1."""
        if line < 0:
            return None, None, None
        sha256, size, box = (self.get(column, line) for column in ("sha256", "size", "box"))
        if sha256 is not None and not is_sha256(sha256):
            raise UsageError(f"id {self.ids[line]!r}: sha256 {sha256!r} is not 64 hex digits.")
        return sha256, _whole(size, 2), _whole(box, 4)


def _whole(value: Any, count: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != count or not all(type(number) is int for number in numbers):
        raise UsageError(f"{value!r} must be {count} whole numbers.")
    return numbers
