from .fit import RowSpectrum, fit_codec
from .torch_module import CodecModule

__all__ = [
    "CodecModule",
    "RowSpectrum",
    "fit_codec",
]
