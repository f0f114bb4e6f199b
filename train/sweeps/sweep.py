"""Many students from one pass over the cache.

Cells whose settings choose the same rows take turns on each batch, so that it is read once. Each
keeps its own run folder and random state and cannot tell that it is not alone: a cell is bit-equal
to a run of its own. A sweep that was stopped goes on; finished cells are not touched.

    out/NAME/           an ordinary run folder per cell
    out/table.parquet   a line per cell, teacher and token kind
    out/table.md        a line per setting: mean, interval over seeds, average rank
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.cache.storage import publish
from phistill.cache.upkeep.copying import CopyProgress
from phistill.compute.devices import choose_device, current_device
from phistill.compute.launch import launched
from phistill.compute.ranks import Ranks
from phistill.errors import Diverged, UsageError, counted

from ..data.near import stage_caches
from ..evaluation import EvalRow, evaluate
from ..progress import Progress
from ..resolve import resolve_run
from ..run import Run
from ..run_folder import is_diverged, refuse_changes, stored_facts
from ..trainer import source_of, train_runs
from .cells import Cell
from .tables import publish_tables

EVALUATION = "evaluation.json"

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


def sweep(
    cache: CacheArgument,
    out: Path | str,
    grid: Sequence[Cell],
    *,
    stage: Path | str | None = None,
    progress: SweepProgress | None = None,
    stage_progress: CopyProgress | None = None,
) -> SweepResult:
    """Train every cell below ``out`` and compare them on the held-out rows.

    ``stage`` is a folder on a near disk that the rows are copied to first, as of ``train``.

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
    _refuse_changed_cells(folder, mine)
    num_trained = num_passes = 0
    for cells in _sharing(mine):
        near = caches
        if stage is not None and not all(read_evaluation(folder / cell.name) for cell in cells):
            near = stage_caches(caches, stage, cells[0].config, progress=stage_progress)
        group = Ranks(device=choose_device(cells[0].config.device, local_rank))
        with current_device(group.device), contextlib.ExitStack() as stack:
            trained = _one_pass(caches, near, folder, cells, group, progress, stack)
        num_trained, num_passes = num_trained + trained, num_passes + bool(trained)
    table = None
    lines = {cell.name: read_evaluation(folder / cell.name) for cell in grid}
    diverged = [n for n, rows in lines.items() if not rows and is_diverged(folder / n)]
    evaluated = [cell for cell in grid if lines[cell.name]]
    if len(evaluated) + len(diverged) == len(grid) and evaluated:
        table = publish_tables(folder, evaluated, lines, diverged=diverged)
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


def _refuse_changed_cells(folder: Path, grid: Sequence[Cell]) -> None:
    """RunMismatch, before anything is trained, when a cell's folder has other settings.

    A finished cell is never opened again: only this tells that the grid's file has changed since.
    """
    for cell in grid:
        facts = stored_facts(folder / cell.name)
        if facts is not None:
            refuse_changes(folder / cell.name, facts["config"], cell.config)


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
) -> int:
    """Train and evaluate the unfinished ones of cells that share their rows; returns how many.

    ``near`` are copies of the caches to learn from; ``stack`` closes the runs, however this ends.
    """
    runs: list[Run] = []
    for cell in (cell for cell in cells if not read_evaluation(folder / cell.name)):
        tell = None if progress is None else _named(progress, cell.name)
        resolved = resolve_run(caches, cell.config, group.device)
        if not resolved.num_heldout:
            raise UsageError(
                f"{caches.location} holds no image out, so there is nothing to compare settings "
                "on. Extract a cache with --holdout 0.05."
            )
        runs.append(Run(folder / cell.name, resolved, group, tell))
        stack.callback(runs[-1].close)
    waiting = [run for run in runs if not run.state.is_finished]
    if waiting:
        train_runs(waiting, source_of(waiting, near))
    for run in (run for run in runs if run.diverged is None):
        lines = evaluate(run.path, caches, untrained=False, device=str(group.device))
        text = json.dumps([line.to_dict() for line in lines], indent=1)
        publish.publish_bytes(run.path / EVALUATION, text.encode())
    return len(runs)


def _named(progress: SweepProgress, name: str) -> Callable[[Progress], None]:
    return lambda where: progress(name, where)


def read_evaluation(run: Path) -> list[EvalRow]:
    """The finished cell's lines; [] when it is not finished."""
    try:
        records = json.loads((run / EVALUATION).read_bytes())
    except FileNotFoundError:
        return []
    return [EvalRow(**record) for record in records]
