"""The bytes of coded rows: what a codec's tables are, encoding and decoding (docs/codes.md).

A codec is fitted in ``stats.codes``; what it writes and reads is a part of the cache's format.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
