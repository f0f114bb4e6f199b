from . import cache, demo, errors, pipeline, report, stats
from .cache import Cache, open
from .errors import PhistillError
from .pipeline import CacheSettings, ExtractOptions, extract
from .report.terminal import progress_bar
from .stats import fit_stats
from .train import TrainConfig, evaluate, export, load_run, load_student, sweep, train

__version__: str

__all__ = [
    "Cache",
    "CacheSettings",
    "ExtractOptions",
    "PhistillError",
    "TrainConfig",
    "cache",
    "demo",
    "errors",
    "evaluate",
    "export",
    "extract",
    "fit_stats",
    "load_run",
    "load_student",
    "open",
    "pipeline",
    "progress_bar",
    "report",
    "stats",
    "sweep",
    "train",
]
