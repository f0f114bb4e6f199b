"""Statistics of cached features: moments, rotations, normalizers.

``fit_stats`` takes those of a whole cache. Fit a normalizer from features at hand:

>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(1000, 12))
>>> normalizer = Normalizer.fit(Moments.of(x), method="phi-s")
>>> np.allclose(normalizer.transform(x).var(axis=0), 1.0)
True
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
