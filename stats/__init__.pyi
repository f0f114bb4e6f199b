from .description import StatsRow
from .export import export_normalizer
from .fit.fit import fit_stats, fitted, load_moments, load_options, load_row, stored_rows
from .fit.pieces import PassOptions
from .fit.schedule import FitProgress
from .moments.moments import Moments
from .normalizer.normalizer import METHODS, Normalizer

__all__ = [
    "METHODS",
    "FitProgress",
    "Moments",
    "Normalizer",
    "PassOptions",
    "StatsRow",
    "export_normalizer",
    "fit_stats",
    "fitted",
    "load_moments",
    "load_options",
    "load_row",
    "stored_rows",
]
