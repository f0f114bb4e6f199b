"""The tables of a sweep: every figure in parquet, and what a person compares in Markdown."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phistill.cache.storage import publish

from ..evaluation import EvalRow
from .cells import Cell

# fmt: off
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""97.5 % points of Student's t with 1 to 30 degrees of freedom; beyond, 1.96 is within 4 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One teacher and token kind under one setting, over its seeds."""

    column: str
    """``TEACHER/KIND``."""

    values: tuple[float, ...]
    """Score per seed, lower is better: unexplained variance, or 1 - cosine where only a direction
    is learnt."""

    rank: float
    """Among the settings, by mean; 1 is best, ties share the average."""

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def half_interval(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds; None for a single seed."""
        n = len(self.values)
        if n < 2:
            return None
        quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else 1.96
        return quantile * stdev(self.values) / math.sqrt(n)


def figures(
    grid: Sequence[Cell], lines: Mapping[str, Sequence[EvalRow]]
) -> dict[str, dict[str, Figure]]:
    """By setting (everything that varies but the seed), then by column."""
    values: dict[str, dict[str, list[float]]] = {}
    for cell in grid:
        columns = values.setdefault(setting_of(cell), {})
        for line in lines[cell.name]:
            columns.setdefault(line.column, []).append(line.score)
    found: dict[str, dict[str, Figure]] = {setting: {} for setting in values}
    for column in dict.fromkeys(name for columns in values.values() for name in columns):
        means = {s: fmean(columns[column]) for s, columns in values.items() if column in columns}
        for setting, mean in means.items():
            below = sum(other < mean for other in means.values())
            ties = sum(other == mean for other in means.values())
            rank = below + (ties + 1) / 2
            found[setting][column] = Figure(
                column=column, values=tuple(values[setting][column]), rank=rank
            )
    return found


def setting_of(cell: Cell) -> str:
    """A cell's name without its seed."""
    varying = {key: value for key, value in cell.settings.items() if key != "seed"}
    return (
        ", ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in varying.items()
        )
        or "all"
    )


def markdown(found: Mapping[str, Mapping[str, Figure]]) -> str:
    """Settings by average rank, best first; each figure with its interval and (rank)."""
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    ranks = {setting: fmean(f.rank for f in row.values()) for setting, row in found.items()}
    head = ["setting", "seeds", "average rank", *columns]
    rows = []
    for setting in sorted(found, key=lambda name: ranks[name]):
        row = found[setting]
        num_seeds = max(len(figure.values) for figure in row.values())
        cells = [_cell(row.get(column)) for column in columns]
        rows.append([setting, str(num_seeds), f"{ranks[setting]:.2f}", *cells])
    table = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return (
        "Unexplained variance on held-out rows (1 - cosine for summaries learnt by direction): "
        "mean over seeds ± half the 95 % interval (rank). Lower is better.\n\n" + text + "\n"
    )


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    half = "" if figure.half_interval is None else f" ± {figure.half_interval:.4f}"
    return f"{figure.mean:.4f}{half} ({figure.rank:g})"


def publish_tables(
    folder: Path,
    grid: Sequence[Cell],
    lines: Mapping[str, Sequence[EvalRow]],
    *,
    diverged: Sequence[str] = (),
) -> Path:
    """Write table.parquet and table.md, which names the cells that diverged; returns the latter."""
    records: list[dict[str, Any]] = [
        {
            "cell": cell.name,
            "setting": setting_of(cell),
            **{f"set_{key}": json.dumps(value) for key, value in cell.settings.items()},
            **line.to_dict(),
        }
        for cell in grid
        for line in lines[cell.name]
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    publish.publish_bytes(folder / "table.parquet", sink.getvalue())
    text = markdown(figures(grid, lines))
    if diverged:
        text += f"\nDiverged, and not in the table: {', '.join(diverged)}.\n"
    publish.publish_bytes(folder / "table.md", text.encode())
    return folder / "table.md"
