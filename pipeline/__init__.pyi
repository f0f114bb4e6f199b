from .extraction import ExtractReport, extract
from .images.open_source import open_source
from .images.source import ImageSource, SourceOptions, image_records
from .progress import ExtractProgress
from .rejects import rejects
from .settings import CacheSettings, CodeSettings, ExtractOptions
from .teachers.contract import Features, Preprocessing, Teacher
from .teachers.spec import TeacherSpec

__all__ = [
    "CacheSettings",
    "CodeSettings",
    "ExtractOptions",
    "ExtractProgress",
    "ExtractReport",
    "Features",
    "ImageSource",
    "Preprocessing",
    "SourceOptions",
    "Teacher",
    "TeacherSpec",
    "extract",
    "image_records",
    "open_source",
    "rejects",
]
