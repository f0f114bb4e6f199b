from .rgb import DecodeRules, Reject, decode
from .views import View

__all__ = [
    "DecodeRules",
    "Reject",
    "View",
    "decode",
]
