"""Many students from one pass over the cache.

Cells whose settings choose the same rows take turns on each batch, so that it is read once. Each
keeps its own run folder and random state and cannot tell that it is not alone: a cell is bit-equal
to a run of its own. A sweep that was stopped goes on; finished cells are not touched.

    out/NAME/           an ordinary run folder per cell, with what results.py keeps beside it
    out/table.parquet   a line per cell, teacher and token kind
    out/table.md        a line per setting: mean, interval over seeds, average rank, ties
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.cache.upkeep.copying import CopyProgress
from phistill.compute.devices import choose_device, current_device
from phistill.compute.launch import launched
from phistill.compute.ranks import Ranks
from phistill.display import Table
from phistill.errors import Diverged, UsageError, counted

from ..checkpoint import gets_more, refuse_changes, stored_facts
from ..data.near import stage_caches
from ..data.source import parts_of
from ..data.stream import Rows
from ..evaluation import evaluate
from ..evaluation.index import column, images_of
from ..progress import Progress
from ..resolve import resolve_run
from ..run import Run
from ..trainer import source_of, train_runs
from .cells import Cell
from .results import (
    forget_evaluation,
    is_finished,
    read_results,
    write_cell,
    write_evaluation,
)
from .tables import CellLine, cell_lines, publish_tables

if TYPE_CHECKING:
    import pandas as pd

SweepProgress = Callable[[str, Progress], None]
"""Called with the cell's name and where it stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """What ``sweep`` leaves behind."""

    path: Path
    num_cells: int
    num_trained: int
    """Cells this call trained; the others were finished before."""

    num_passes: int
    """Passes over the rows: 1 when every cell chooses the same ones."""

    seconds: float
    table: Path | None
    """table.md; None while another rank still trains cells of the grid."""

    @property
    def cells(self) -> Table[CellLine]:
        """A line per finished cell, teacher and token kind, of every cell in the folder."""
        return cell_lines(read_results(self.path))

    def to_pandas(self) -> pd.DataFrame:
        """``cells`` with every quantity; UsageError without pandas."""
        return self.cells.to_pandas()

    def _repr_html_(self) -> str:
        return self.cells._repr_html_()


def sweep(
    cache: CacheArgument,
    out: Path | str,
    grid: Sequence[Cell],
    *,
    stage: Path | str | None = None,
    extend: bool = False,
    progress: SweepProgress | None = None,
    stage_progress: CopyProgress | None = None,
) -> SweepResult:
    """Train every cell below ``out`` and compare them on the held-out rows.

    The tables are over all cells that lie below ``out``, those of other files too. ``stage`` and
    ``extend`` are those of ``train``.

    Under ``torchrun`` each rank trains its share of the cells and reads the rows once; the tables
    are then written by whichever call finds every cell finished. Raises what ``train`` raises, but
    Diverged only after all other cells are trained and compared.
    """
    if not grid:
        raise UsageError("the grid is empty.")
    folder, caches, begun = Path(out), open_caches(cache), time.perf_counter()
    launch = launched(os.environ)
    mine = list(grid) if launch is None else list(grid)[launch.rank :: launch.world]
    local_rank = None if launch is None else launch.local_rank
    _refuse_changed_cells(folder, mine, extend=extend)
    num_trained = num_passes = 0
    for cells in _sharing(mine):
        near = caches
        if stage is not None and not all(is_finished(folder / cell.name) for cell in cells):
            near = stage_caches(caches, stage, cells[0].config, progress=stage_progress)
        group = Ranks(device=choose_device(cells[0].config.device, local_rank))
        with current_device(group.device), contextlib.ExitStack() as stack:
            trained = _one_pass(caches, near, folder, cells, group, progress, stack, extend=extend)
        num_trained, num_passes = num_trained + trained, num_passes + bool(trained)
    table = None
    results = read_results(folder)
    ended = {one.name for one in results if one.lines or one.diverged_at is not None}
    diverged = [one.name for one in results if one.diverged_at is not None]
    if ended >= {cell.name for cell in grid} and any(one.lines for one in results):
        table = publish_tables(folder, results)
    if mine_diverged := [cell.name for cell in mine if cell.name in diverged]:
        raise Diverged(
            f"{counted(len(mine_diverged), 'cell')} of {len(grid)} diverged: "
            f"{', '.join(mine_diverged)}. The rows are in the diverged.json of each, below "
            f"{folder}; the other cells are trained"
            + (f" and compared in {table}." if table else ".")
        )
    return SweepResult(
        path=folder,
        num_cells=len(grid),
        num_trained=num_trained,
        num_passes=num_passes,
        seconds=time.perf_counter() - begun,
        table=table,
    )


def _refuse_changed_cells(folder: Path, grid: Sequence[Cell], *, extend: bool) -> None:
    """RunMismatch, before anything is trained, when a cell's folder has other settings.

    A finished cell is never opened again: only this tells that the grid's file has changed since.
    One that gets more steps is finished no more.
    """
    for cell in grid:
        facts = stored_facts(folder / cell.name)
        if facts is not None:
            refuse_changes(folder / cell.name, facts["config"], cell.config, extend=extend)
    for cell in grid if extend else ():
        facts = stored_facts(folder / cell.name)
        if facts is not None and gets_more(facts["config"], cell.config):
            forget_evaluation(folder / cell.name)


def _sharing(grid: Sequence[Cell]) -> list[list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in grid:
        groups.setdefault(cell.shared, []).append(cell)
    return list(groups.values())


def _one_pass(
    caches: JoinedCaches,
    near: JoinedCaches,
    folder: Path,
    cells: Sequence[Cell],
    group: Ranks,
    progress: SweepProgress | None,
    stack: contextlib.ExitStack,
    *,
    extend: bool,
) -> int:
    """Train and evaluate the unfinished ones of cells that share their rows; returns how many.

    ``near`` are copies of the caches to learn from; ``stack`` closes the runs, however this ends.
    """
    runs: list[Run] = []
    for cell in (cell for cell in cells if not is_finished(folder / cell.name)):
        tell = None if progress is None else _named(progress, cell.name)
        resolved = resolve_run(caches, cell.config, group.device)
        if not resolved.num_heldout:
            raise UsageError(
                f"{caches.location} holds no image out, so there is nothing to compare settings "
                "on. Extract a cache with --holdout 0.05."
            )
        runs.append(Run(folder / cell.name, resolved, group, tell, extend=extend))
        stack.callback(runs[-1].close)
        write_cell(folder, cell)
    waiting = [run for run in runs if not run.state.is_finished]
    if waiting:
        train_runs(waiting, source_of(waiting, near))
    for run in (run for run in runs if run.diverged is None):
        _evaluate(run, caches)
    return len(runs)


def _named(progress: SweepProgress, name: str) -> Callable[[Progress], None]:
    return lambda where: progress(name, where)


def _evaluate(run: Run, caches: JoinedCaches) -> None:
    """Measure a finished run on held-out rows, and keep what every image gave."""
    lines = evaluate(run.path, caches, untrained=False, device=str(run.ranks.device))
    parts = parts_of(caches, run.resolved.teachers, "heldout")
    images = {part.cache: _images_digest(caches, part.rows) for part in parts}
    write_evaluation(run.path, lines, {line.column: images[line.cache] for line in lines})


def _images_digest(caches: JoinedCaches, rows: Rows) -> str:
    """Equal for rows of the same images, in the order in which ``evaluate`` takes them."""
    _, first = np.unique(images_of(caches, rows), return_index=True)
    ids = column(caches, rows[first], "id").tolist()
    return sha256("\n".join(ids).encode()).hexdigest()
