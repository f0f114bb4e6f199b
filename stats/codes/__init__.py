"""Rows of features as codes of a few bits per channel.

Principal axes, a DCT over the token grid, bits by reverse water-filling, Hadamard blocks, Lloyd-Max
levels; docs/codes.md.

>>> import numpy as np
>>> from phistill.stats import Moments
>>> rows = np.random.default_rng(0).normal(size=(200, 16, 32)) * np.arange(1, 33)
>>> codec = fit_codec(Moments.of(rows), [rows], grid=(4, 4), num_bytes=128)
>>> codes = codec.encode(rows)
>>> codes.shape, codes.dtype, codec.decode(codes).shape
((200, 128), dtype('uint8'), (200, 16, 32))
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
