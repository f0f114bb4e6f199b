"""From bytes to pixels. Imports NumPy and Pillow only: a decoding process pays for no more."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
