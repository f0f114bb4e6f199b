"""Images, views and teachers: stage one, writing the cache. The verb is ``extract``."""

from .contract import Features, Preprocessing, Teacher
from .extract import ExtractReport, extract
from .options import ExtractOptions
from .progress import ExtractProgress
from .rejects import rejects
from .settings import CacheSettings
from .sources import open_source
from .teachers import TeacherSpec

__all__ = [
    "CacheSettings",
    "ExtractOptions",
    "ExtractProgress",
    "ExtractReport",
    "Features",
    "Preprocessing",
    "Teacher",
    "TeacherSpec",
    "extract",
    "open_source",
    "rejects",
]
