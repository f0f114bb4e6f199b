"""Bytes on disk: layout, integrity, reading and writing rows, order.

``open`` and ``create`` return a ``Cache``; the format is in docs/format.md. Names are loaded on
first use, so that what needs one light module of this room pays for nothing else.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
