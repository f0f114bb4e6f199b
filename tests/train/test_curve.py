"""Whether a curve was still falling where it ended."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from phistill.train.curve import CurveEnd, curve_end, unweighted


def curve(num_lines: int, noise: float, **more: float) -> CurveEnd:
    """The end of a curve that falls to 0.3 and by ``slope`` beyond, with noise at each line."""
    generator = np.random.default_rng(0)
    steps = np.arange(num_lines) / num_lines
    losses = 0.3 + 0.7 * np.exp(-30 * steps) - more.get("slope", 0.0) * steps
    end = curve_end(list(losses + noise * generator.standard_normal(num_lines)))
    assert end is not None
    return end


def test_a_curve_that_still_falls_is_told_from_one_that_has_flattened() -> None:
    falling, flat = curve(200, 0.005, slope=0.1), curve(200, 0.005)
    assert falling.is_falling
    assert not falling.is_flat
    assert "still falling" in str(falling)
    assert flat.is_flat
    assert not flat.is_falling
    assert "hardly help" in str(flat)


def test_a_few_lines_of_noise_give_no_verdict() -> None:
    """15 lines, the last fifth of which lies 4.7 % above the fifth before by chance."""
    rising = [2.0, 1.4, 1.2, 1.1, 1.0, 0.98, 1.03, 0.93, 1.01, 0.95, 0.99, 0.92, 1.02, 0.94, 1.04]
    end = curve_end(rising)
    assert end is not None
    assert end.num_lines == 8
    assert not end.is_falling
    assert not end.is_flat
    assert "cannot be told from 8 logged lines" in str(end)
    assert "hardly" not in str(end)
    smooth = curve_end([1.0, 0.9, 0.8, 0.8, 0.8, *(0.8 + 0.001 * n for n in range(10))])
    assert smooth is not None
    assert smooth.high < 0
    assert not smooth.is_flat, "eight lines are too few whatever their noise"


@pytest.mark.parametrize("num_lines", [15, 100])
@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_noise_is_no_fall_whether_or_not_it_remembers(num_lines: int, memory: float) -> None:
    generator = np.random.default_rng(1)
    ends = []
    for _ in range(400):
        noise = generator.standard_normal(num_lines + 20)
        for place in range(1, len(noise)):
            noise[place] += memory * noise[place - 1]
        ends.append(curve_end(list(1 + 0.1 * noise[20:])))
    # 2.5 % by chance; a memory that must be estimated from eight lines costs some more (6 %).
    assert np.mean([end is not None and end.is_falling for end in ends]) < 0.08


def test_flat_is_seldom_said_of_a_curve_that_falls_by_more() -> None:
    generator = np.random.default_rng(2)
    line = np.linspace(1.2, 1.0, 100)  # by 10 % over the last half
    for noise in (0.01, 0.1, 0.5):
        ends = [curve_end(list(line + noise * generator.standard_normal(100))) for _ in range(400)]
        assert np.mean([end is not None and end.is_flat for end in ends]) < 0.04


def test_a_short_curve_says_nothing() -> None:
    assert curve_end([1.0] * 9) is None
    assert curve_end([math.nan] * 20) is None


def test_a_loss_that_adaloss_holds_level_is_seen_to_fall_by_its_terms() -> None:
    terms = [{"a": 0.99**n, "b": 50 * 0.99**n} for n in range(100)]
    lines = [{"losses": one} for one in terms]
    level = curve_end([sum(one[k] / before[k] for k in one) for before, one in pairwise(terms)])
    assert level is not None
    assert not level.is_falling, "the weighted sum does not show it"
    found = unweighted(lines)
    assert found == pytest.approx([math.sqrt(50) * 0.99**n for n in range(100)])
    end = curve_end(found)
    assert end is not None
    assert end.is_falling


def test_terms_that_some_lines_lack_or_that_reach_nothing_are_left_out() -> None:
    lines = [{"losses": {"a": 2.0, "b": 1.0, "c": 0.0}}, {"losses": {"a": 3.0, "c": 1.0}}]
    assert unweighted(lines) == pytest.approx([2.0, 3.0])
    assert unweighted([{"losses": {"c": 0.0}}]) == []
    assert unweighted([]) == []
