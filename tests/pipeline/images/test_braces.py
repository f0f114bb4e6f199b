"""Braces in the name of a source stand for many names."""

from __future__ import annotations

import pytest

from phistill.errors import UsageError
from phistill.pipeline.images.open_source import expand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-{0..3}.tar", ["a-0.tar", "a-1.tar", "a-2.tar", "a-3.tar"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_stand_for_many_names(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize("text", ["{3..1}", "{a..c}", "{}", "{0..99999999}"])
def test_braces_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        expand(text)
