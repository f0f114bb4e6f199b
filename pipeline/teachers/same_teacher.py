"""A teacher is added to a cache once; another one under its name is refused."""

from __future__ import annotations

from phistill.cache import Cache, TeacherInfo
from phistill.errors import CacheMismatch


def add_or_require(cache: Cache, teacher: TeacherInfo, way_out: str) -> None:
    """Add ``teacher``, unless the cache has it."""
    if teacher.name in cache.teachers:
        require_equal(cache, teacher, way_out)
    else:
        cache.add_teacher(teacher)


def require_equal(cache: Cache, teacher: TeacherInfo, way_out: str) -> None:
    """CacheMismatch, which ends with ``way_out``, for another teacher than the cache has."""
    for field, (there, here) in (
        cache.teacher(teacher.name).differences(teacher.fingerprint).items()
    ):
        raise CacheMismatch(
            f"{cache.location} holds another teacher {teacher.name!r}: {field} is {there!r} there, "
            f"{here!r} here. {way_out}"
        )
