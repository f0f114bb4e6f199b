"""Teachers: what one is, how it is named and built, and how it is run over pixels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
