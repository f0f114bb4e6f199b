from .moments import Moments

__all__ = [
    "Moments",
]
