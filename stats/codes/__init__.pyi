from .codec import RowCodec, bytes_for
from .fit import fit_codec
from .torch_module import CodecModule

__all__ = [
    "CodecModule",
    "RowCodec",
    "bytes_for",
    "fit_codec",
]
