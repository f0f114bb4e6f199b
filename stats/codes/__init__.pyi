from .codec import RowCodec, bytes_for
from .fit import RowSpectrum, fit_codec
from .torch_module import CodecModule

__all__ = [
    "CodecModule",
    "RowCodec",
    "RowSpectrum",
    "bytes_for",
    "fit_codec",
]
