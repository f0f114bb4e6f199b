from .codec import Encoded, RowCodec, bytes_for
from .stored import FittedCodec, coded_teacher

__all__ = [
    "Encoded",
    "FittedCodec",
    "RowCodec",
    "bytes_for",
    "coded_teacher",
]
