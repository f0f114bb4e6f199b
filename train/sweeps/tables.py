"""The tables of a sweep: every figure in parquet, and what a person compares in Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phistill.cache.storage import publish
from phistill.display import Table
from phistill.errors import counted
from phistill.stats.intervals import MIN_IMAGES

from ..evaluation import EvalRow
from .compare import Figure, Setting, compare
from .results import CellResult

EXPLANATION = (
    "Error on held-out images over that of the constant, the training mean: squared error, or 1 - "
    "cosine where a setting learns directions alone. 0 is the teacher, 1 no better than the "
    "constant. Mean over seeds ± half the 95 % interval over seeds (rank). Lower is better. `=` "
    "marks what the best cannot be told from: the 95 % interval of the difference, by paired "
    "bootstrap over images, or over seeds where there are several, does not exclude 0."
)


@dataclass(frozen=True, eq=False, slots=True)
class CellLine:
    """One cell, one teacher and token kind."""

    cell: CellResult
    line: EvalRow

    def shown(self) -> dict[str, str]:
        """The line of a table, by column."""
        shown = self.line.shown()
        return {"cell": self.cell.name, **{k: v for k, v in shown.items() if k != "student"}}

    def to_dict(self) -> dict[str, Any]:
        """The cell, its settings as ``set_KEY`` in JSON, and every figure."""
        settings = {f"set_{key}": json.dumps(value) for key, value in self.cell.settings.items()}
        cell = {"cell": self.cell.name, "setting": self.cell.setting}
        return {**cell, **settings, **self.line.to_dict()}


def cell_lines(results: Sequence[CellResult]) -> Table[CellLine]:
    """Of every finished cell."""
    return Table(CellLine(one, line) for one in results for line in one.lines)


def publish_tables(folder: Path, results: Sequence[CellResult]) -> Path:
    """Write table.parquet and table.md, which names the cells that diverged; returns the latter."""
    records = [line.to_dict() for line in cell_lines(results)]
    columns = dict.fromkeys(key for record in records for key in record)
    sink = io.BytesIO()
    pq.write_table(pa.table({c: [r.get(c) for r in records] for c in columns}), sink)
    publish.publish_bytes(folder / "table.parquet", sink.getvalue())
    publish.publish_bytes(folder / "table.md", markdown(compare(results)).encode())
    return folder / "table.md"


def markdown(settings: Sequence[Setting]) -> str:
    """Settings by average rank, best first; then what may not be read into them."""
    columns = list(dict.fromkeys(c for one in settings for c in one.figures))
    head = ["setting", "seeds", "average rank", "behind the best", *columns]
    rows = [
        [one.name, _seeds(one), _rank(one), _behind(one), *(_cell(one, c) for c in columns)]
        for one in settings
    ]
    blocks = [EXPLANATION, _table(head, rows), "\n".join(f"* {note}" for note in _notes(settings))]
    raw = [c for c in columns if any(_raw(one, c) != "-" for one in settings)]
    if raw:
        rows = [[one.name, *(_raw(one, c) for c in raw)] for one in settings if one.cells]
        blocks += [
            "Mean squared error in the teachers' own units:",
            _table(["setting", *raw], rows),
        ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _notes(settings: Sequence[Setting]) -> list[str]:
    notes = []
    ranked = [one for one in settings if one.is_ranked]
    if any(len(one.cells) == 1 for one in ranked):
        notes.append(
            "One seed for some settings: their intervals are over images alone, and another seed "
            "may turn the order round."
        )
    few = [one.behind for one in ranked if one.behind is not None and one.behind.low is None]
    if few:
        notes.append(
            f"{counted(few[0].num_images, 'held-out image')}: with fewer than {MIN_IMAGES} no "
            "interval is given, and nothing is told apart."
        )
    ties = [one.name for one in ranked if one.is_tied]
    if ties:
        notes.append(f"Not told from the best, {ranked[0].name}: {'; '.join(ties)}.")
    figures = [(c, f) for one in ranked for c, f in one.figures.items()]
    apart = list(dict.fromkeys(c for c, figure in figures if figure.rank is None))
    if apart and len(ranked) > 1:
        notes.append(
            f"Not ranked, for not all settings have them on the same images: {', '.join(apart)}."
        )
    for one in settings:
        for cell in one.diverged:
            notes.append(f"Diverged at step {cell.diverged_at}, and not in the table: {cell.name}.")
    return notes


def _seeds(one: Setting) -> str:
    lost = f" of {len(one.cells) + len(one.diverged)}, diverged" if one.diverged else ""
    return f"{len(one.cells)}{lost}"


def _rank(one: Setting) -> str:
    return "-" if one.average_rank is None else f"{one.average_rank:.2f}"


def _behind(one: Setting) -> str:
    if not one.is_ranked:
        return "-"
    if one.behind is None:
        return "best"
    found = one.behind
    between = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.value:+.4f}{between}{' =' if one.is_tied else ''}"


def _cell(one: Setting, column: str) -> str:
    def text(figure: Figure) -> str:
        half = "" if figure.half_interval is None else f" ± {figure.half_interval:.4f}"
        tie = "=" if figure.is_tied else ""
        rank = "" if figure.rank is None else f" ({figure.rank:g}{tie})"
        return f"{figure.mean:.4f}{half}{rank}"

    return _of(one, column, text)


def _raw(one: Setting, column: str) -> str:
    return _of(one, column, lambda f: "-" if f.raw is None else f"{f.raw:.4g}")


def _of(one: Setting, column: str, text: Callable[[Figure], str]) -> str:
    return text(one.figures[column]) if column in one.figures else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
