from .methods import METHODS
from .normalizer import Normalizer

__all__ = [
    "METHODS",
    "Normalizer",
]
