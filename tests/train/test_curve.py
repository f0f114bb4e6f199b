"""Whether a curve was still falling where it ended."""

from __future__ import annotations

import math

import numpy as np

from phistill.train.curve import curve_end


def test_a_curve_that_still_falls_is_told_from_one_that_has_flattened() -> None:
    noise = np.random.default_rng(0).standard_normal(200) * 0.02
    steps = np.arange(200) / 200
    falling = curve_end(list(1 - 0.6 * steps + noise))
    flat = curve_end(list(0.3 + 0.7 * np.exp(-12 * steps) + noise))
    assert falling is not None
    assert flat is not None
    assert falling.is_falling
    assert "still falling" in str(falling)
    assert not flat.is_falling
    assert "hardly help" in str(flat)


def test_noise_is_no_fall() -> None:
    generator = np.random.default_rng(1)
    ends = [curve_end(list(1 + 0.3 * generator.standard_normal(100))) for _ in range(200)]
    assert np.mean([end is not None and end.is_falling for end in ends]) < 0.06


def test_a_short_curve_says_nothing() -> None:
    assert curve_end([1.0] * 9) is None
    assert curve_end([math.nan] * 20) is None
