from .extraction import ExtractReport, extract
from .images.open_source import open_source
from .options import ExtractOptions
from .progress import ExtractProgress
from .rejects import rejects
from .settings import CacheSettings
from .teachers.contract import Features, Preprocessing, Teacher
from .teachers.spec import TeacherSpec

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
