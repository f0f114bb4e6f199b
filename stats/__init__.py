"""Statistics of cached features: moments, rotations, normalizers.

``fit_stats`` takes those of a whole cache. Fit a normalizer from features at hand:

>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(1000, 12))
>>> normalizer = Normalizer.fit(Moments.of(x), method="phi-s")
>>> np.allclose(normalizer.transform(x).var(axis=0), 1.0)
True
"""

from .export import export_normalizer
from .fit import fit_stats, fitted, load_moments, load_options, load_row, stored_rows
from .groups import PassOptions
from .moments import Moments
from .normalizer import METHODS, Normalizer
from .row import StatsRow
from .schedule import FitProgress

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
