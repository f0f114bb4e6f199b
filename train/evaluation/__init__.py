"""How good a student is, beside the teacher, the constant, an untrained student and pixels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
