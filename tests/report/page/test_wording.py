"""Numbers as words."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phistill.report.page.tables import numeric_columns
from phistill.report.page.wording import (
    BALANCE_WORDS,
    LOSS_WORDS,
    METHOD_WORDS,
    PERCENT,
    in_words,
    number_text,
    percent_text,
    times_text,
)
from phistill.stats import METHODS
from phistill.train.config import PATCH_LOSSES, SUMMARY_LOSSES, TrainConfig


@given(st.floats(1e-9, 1 - 1e-9))
def test_a_percentage_is_neither_all_nor_nothing_and_close_to_the_share(share: float) -> None:
    shown = float(percent_text(share).removesuffix(PERCENT)) / 100
    assert 0 < shown < 1
    # A digit after the point is half a tenth of a percent off at most; nearer to an end two digits
    # of what is left are shown, half a unit of the second being 5 % of it.
    assert abs(shown - share) <= 0.000501 or abs(shown - share) <= 0.051 * share


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (0.0011, "0.00110"),
        (-0.5, "−0.500"),
        (12.34, "12.3"),
        (999.7, "1,000"),
        (123456.0, "123,456"),
        (1.2e-7, "1.20e−07"),
        (-3e7, "−3.00e+07"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.04, "1.0"), (9.96, "10"), (37.4, "37"), (131.0, "130"), (20514, "21,000")],
)
def test_a_ratio_has_two_digits(ratio: float, text: str) -> None:
    assert times_text(ratio) == text


def test_columns_of_numbers_are_found_whatever_follows_the_number() -> None:
    rows = [("a", "0.41 [0.3, 0.5]", "yes", "–"), ("b", "−1", "1", "3 %")]
    assert numeric_columns(("task", "x", "y", "z"), rows) == [False, True, False, True]
    assert numeric_columns(("task", "x"), []) == [False, False]


def test_every_normalizer_loss_and_balance_has_words() -> None:
    assert tuple(METHOD_WORDS) == METHODS
    assert set(LOSS_WORDS) == {*PATCH_LOSSES, *SUMMARY_LOSSES} - {"none"}
    (balances,) = (f for f in msgspec.structs.fields(TrainConfig) if f.name == "balance")
    assert set(BALANCE_WORDS) == set(get_args(get_args(balances.type)[0]))


def test_settings_are_said_in_words() -> None:
    values = {"patch_loss": "mse", "lr": 9.0, "weights": {}, "betas": [0.9, 0.5]}
    assert in_words(values) == "patch loss mse, lr 9, weights none, betas 0.9, 0.5"
