"""Images, views and teachers: stage one, writing the cache. The verb is ``extract``.

Names are loaded on first use: a decoding process needs NumPy and Pillow, and pays for no more.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
