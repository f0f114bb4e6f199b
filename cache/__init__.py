"""Bytes on disk: layout, integrity, reading and writing rows, order.

``open`` and ``create`` return a ``Cache``; the format is in docs/format.md.
"""

from . import growth, lock, names, order, publish
from .commit import CommitRecord, ImageFacts
from .errors import PhistillError, UsageError
from .info import CacheInfo, Segment, TeacherInfo
from .reader import ArrayReader
from .split import HELDOUT, TRAIN, Split
from .store import Cache, create, exists, open

__all__ = [
    "HELDOUT",
    "TRAIN",
    "ArrayReader",
    "Cache",
    "CacheInfo",
    "CommitRecord",
    "ImageFacts",
    "PhistillError",
    "Segment",
    "Split",
    "TeacherInfo",
    "UsageError",
    "create",
    "exists",
    "growth",
    "lock",
    "names",
    "open",
    "order",
    "publish",
]
