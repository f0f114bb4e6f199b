"""Count, mean and scatter of feature vectors, from rows to merged sums."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
