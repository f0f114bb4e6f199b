"""A teacher's name becomes a folder, here and wherever the cache is copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.cache.format.names import check_teacher_name
from phistill.errors import UsageError

CacheFactory = Callable[..., Cache]


@pytest.mark.parametrize("name", ["pixels", "Pixels", "a/b", "..", ".hidden", "", "a" * 65, "é"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not usable"):
        check_teacher_name(name)


def test_a_name_that_differs_in_case_only_is_refused_before_anything_is_written(
    make_cache: CacheFactory,
) -> None:
    cache = make_cache()
    before = cache.digest()
    with pytest.raises(UsageError, match="'a' and 'A' differ in case only"):
        cache.add_teacher(TeacherInfo(name="A", grid=(1, 1), widths={"patches": 2}))
    assert cache.digest() == before
