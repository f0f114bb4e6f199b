"""Text of options is read as people write it."""

from __future__ import annotations

import pytest
from click import BadParameter

from phistill.commands.arguments import DURATION, NUM_BYTES


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800), ("90m", 5400), ("45s", 45), ("1d12h", 129600), ("7", 7)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("200G", 2 * 10**11), ("1.5TiB", 3 * 2**39), ("500 MB", 5 * 10**8)]
)
def test_a_size_is_read_as_people_write_it(text: str, num_bytes: int) -> None:
    assert NUM_BYTES.convert(text, None, None) == num_bytes


@pytest.mark.parametrize("text", ["", "G", "-3G", "nan", "3h4x", "0"])
def test_what_is_no_size_and_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadParameter, match="is not like 200G"):
        NUM_BYTES.convert(text, None, None)
    if text != "0":
        with pytest.raises(BadParameter, match="is not like 3h50m"):
            DURATION.convert(text, None, None)
