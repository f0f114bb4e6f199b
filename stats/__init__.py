"""Statistics of cached features: moments, rotations, normalizers.

Fit a normalizer from features at hand:

>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(1000, 12))
>>> normalizer = Normalizer.fit(Moments.of(x), method="phi-s")
>>> np.allclose(normalizer.transform(x).var(axis=0), 1.0)
True
"""

from .moments import Moments
from .normalizer import METHODS, Normalizer

__all__ = ["METHODS", "Moments", "Normalizer"]
