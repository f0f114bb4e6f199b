from .compacting import compact_cache
from .description import Description
from .export import export_normalizer
from .fit.dask_graph import FitProgress
from .fit.fit import fit_stats
from .fit.loading import load_description, load_moments, load_normalizer, load_options
from .fit.pieces import PassOptions
from .moments.moments import Moments
from .normalizer.methods import METHODS
from .normalizer.normalizer import Normalizer

__all__ = [
    "METHODS",
    "Description",
    "FitProgress",
    "Moments",
    "Normalizer",
    "PassOptions",
    "compact_cache",
    "export_normalizer",
    "fit_stats",
    "load_description",
    "load_moments",
    "load_normalizer",
    "load_options",
]
