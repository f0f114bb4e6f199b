from .check import check_teacher
from .contract import Features, Preprocessing, Teacher
from .spec import TeacherSpec

__all__ = [
    "Features",
    "Preprocessing",
    "Teacher",
    "TeacherSpec",
    "check_teacher",
]
