"""How objects look: as text on a terminal, as HTML in a notebook, in columns for pandas.

What is shown is chosen by the objects; rich draws text, and pandas is imported when it is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from phistill.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

_ROW_STYLE = "text-align:right;padding:2px 10px 2px 0"
_WORD_STYLE = "text-align:left;padding:2px 10px 2px 0"


class Record(Protocol):
    """One line of a table."""

    def shown(self) -> dict[str, str]:
        """What a person is shown, by column."""

    def to_dict(self) -> dict[str, Any]:
        """Every quantity by its name."""


RecordT = TypeVar("RecordT", bound=Record)


class Table(list[RecordT]):
    """A list of records that prints as a table, is one in a notebook, and goes to pandas."""

    def __repr__(self) -> str:
        if not self:
            return "[]"
        header, rows = self._cells()
        return table_text(header, rows, words=_words(rows))

    def _repr_html_(self) -> str:
        header, rows = self._cells() if self else ([], [])
        return table_html(header, rows)

    def to_pandas(self) -> pd.DataFrame:
        """A line per record, every quantity a column; UsageError without pandas."""
        return frame(record.to_dict() for record in self)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        lines = [record.shown() for record in self]
        header = list(dict.fromkeys(name for line in lines for name in line))
        return header, [[line.get(name, "") for name in header] for line in lines]


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A pandas table with a line per record; UsageError where pandas is not installed.

    Nested mappings become columns of their own, ``losses.clip/patches``.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError(
            "pandas is not installed. Install the extra: pip install 'phistill[pandas]'."
        ) from error
    return pd.json_normalize(list(records))


def table_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0,)
) -> str:
    """Aligned columns for a terminal or a pipe, never wrapped; ``words`` are aligned to the left,
    the other columns hold numbers."""
    from io import StringIO

    from rich.box import Box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    # Nothing but a line of hyphens below the header.
    ruled = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    table = Drawn(box=ruled, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, title in enumerate(header):
        table.add_column(title, justify="left" if number in words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=StringIO(), width=10_000, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """The same for a notebook; columns of numbers are aligned to the right."""
    words = _words(rows)
    styles = [_WORD_STYLE if number in words else _ROW_STYLE for number in range(len(header))]
    head = "".join(
        f'<th style="{style}">{escape(name)}</th>'
        for style, name in zip(styles, header, strict=True)
    )
    body = "".join(f"<tr>{_cells_html(row, styles)}</tr>" for row in rows)
    caption = f"<p><b>{escape(title)}</b></p>" if title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """A title, and a line for each fact."""
    styles = [_WORD_STYLE, _WORD_STYLE]
    body = "".join(
        f"<tr>{_cells_html((name, str(value)), styles)}</tr>" for name, value in facts.items()
    )
    return f"<p><b>{escape(title)}</b></p><table><tbody>{body}</tbody></table>"


def _cells_html(row: Sequence[str], styles: Sequence[str]) -> str:
    return "".join(
        f'<td style="{style}">{escape(cell)}</td>' for style, cell in zip(styles, row, strict=True)
    )


def _words(rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns in which a cell is neither a number nor empty."""
    columns = zip(*rows, strict=True)
    return [number for number, cells in enumerate(columns) if not all(map(_is_number, cells))]


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-[").replace(",", "")[:1].isdigit()
