"""Text of options is read as people write it."""

from __future__ import annotations

import click
import pytest
from click import BadParameter

from phistill.commands.arguments import (
    DURATION,
    NAMES,
    NUM_BYTES,
    NUMBERS,
    SEEDS,
    TEACHER_BITS,
    ListOption,
    Parsed,
)


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


@pytest.mark.parametrize(
    ("type_", "given", "value"),
    [
        (NAMES, [], None),
        (NAMES, ["--list", "b,a"], ["b", "a"]),
        (NAMES, ["--list", "b", "--list", "a"], ["b", "a"]),
        (SEEDS, ["--list", "0,1", "--list", "7"], (0, 1, 7)),
        (NUMBERS, ["--list", "0.7", "--list", "0.3"], [0.7, 0.3]),
        (TEACHER_BITS, ["--list", "clip=2", "--list", "ssl=0.5"], {"clip": 2.0, "ssl": 0.5}),
        (TEACHER_BITS, ["--list", "2"], 2.0),
    ],
)
def test_a_list_may_be_given_in_one_or_in_several(
    type_: Parsed, given: list[str], value: object
) -> None:
    assert read_list(type_, given) == value


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        (NAMES, ["--list", "", "--list", "a"]),
        (SEEDS, ["--list", "0", "--list", "0"]),
        (TEACHER_BITS, ["--list", "2", "--list", "ssl=1"]),
        (TEACHER_BITS, ["--list", "2", "--list", "1"]),
        (TEACHER_BITS, ["--list", "ssl=2", "--list", "ssl=1"]),
    ],
)
def test_what_one_list_may_not_say_two_may_not(type_: Parsed, given: list[str]) -> None:
    with pytest.raises(BadParameter):
        read_list(type_, given)


def read_list(type_: Parsed, given: list[str]) -> object:
    @click.command()
    @click.option("--list", "values", cls=ListOption, type=type_)
    def command(values: object) -> object:
        return values

    return command.main(given, standalone_mode=False)
