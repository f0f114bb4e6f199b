from .config import TrainConfig
from .evaluation.evaluate import evaluate
from .evaluation.fidelity import EvalRow
from .evaluation.mask_scores import mask_scores
from .evaluation.tasks import TaskScore
from .evaluation.text_scores import text_scores
from .evaluation.verdict import Verdict, verdict
from .progress import Progress, RunResult
from .student.export import export
from .student.exported import load_student
from .student.predict import TrainedStudent, load_run
from .sweeps.cells import Cell, cells, read_grid
from .sweeps.sweep import SweepResult, sweep
from .trainer import train

__all__ = [
    "Cell",
    "EvalRow",
    "Progress",
    "RunResult",
    "SweepResult",
    "TaskScore",
    "TrainConfig",
    "TrainedStudent",
    "Verdict",
    "cells",
    "evaluate",
    "export",
    "load_run",
    "load_student",
    "mask_scores",
    "read_grid",
    "sweep",
    "text_scores",
    "train",
    "verdict",
]
