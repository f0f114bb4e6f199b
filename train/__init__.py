"""Students: configuration, losses, the loop, checkpoints, evaluation, export.

``train(cache, out, TrainConfig(...))`` makes a run folder; ``load_run(out)`` gives the student as a
function, ``evaluate(out)`` says how much of each teacher it explains, ``export(out, folder)``
leaves phistill behind. Names are loaded on first use, so that importing this room costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from .evaluation import EvalRow, evaluate
    from .exporting import export, load_export
    from .grid import Cell, cells, read_grid
    from .loop import train
    from .predict import TrainedStudent, load_run
    from .run import Progress, RunResult
    from .signals import Interrupted
    from .sweeping import SweepResult, sweep

_WHERE = {
    "Cell": "grid",
    "EvalRow": "evaluation",
    "Interrupted": "signals",
    "Progress": "run",
    "RunResult": "run",
    "SweepResult": "sweeping",
    "TrainedStudent": "predict",
    "cells": "grid",
    "evaluate": "evaluation",
    "export": "exporting",
    "load_export": "exporting",
    "load_run": "predict",
    "read_grid": "grid",
    "sweep": "sweeping",
    "train": "loop",
}

__all__ = [
    "Cell",
    "EvalRow",
    "Interrupted",
    "Progress",
    "RunResult",
    "SweepResult",
    "TrainConfig",
    "TrainedStudent",
    "cells",
    "evaluate",
    "export",
    "load_export",
    "load_run",
    "read_grid",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
