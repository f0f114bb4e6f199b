from .format.facts import ImageFacts
from .format.info import CacheInfo, Segment, TeacherInfo
from .format.record import CommitRecord
from .format.split import HELDOUT, TRAIN, Split
from .opening import create, exists, open
from .reader import ArrayReader, RowReader
from .store import Cache

__all__ = [
    "HELDOUT",
    "TRAIN",
    "ArrayReader",
    "Cache",
    "CacheInfo",
    "CommitRecord",
    "ImageFacts",
    "RowReader",
    "Segment",
    "Split",
    "TeacherInfo",
    "create",
    "exists",
    "open",
]
