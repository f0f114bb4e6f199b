"""How often intervals of CKA and RankMe hold the truth, and why nothing is drawn twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from phistill.stats.intervals import MIN_IMAGES, Interval
from phistill.train.evaluation.similarity import (
    cka,
    cka_interval,
    neighbour_overlap,
    rank_me,
    rank_me_interval,
)

NUM_STUDIES, NUM_IMAGES = 1000, 100
SPREAD = 0.9 ** torch.arange(32, dtype=torch.float64)
"""Standard deviations of the features' channels."""

MAP = torch.randn(32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 5
NOISES = {"much alike": 0.05, "alike": 0.5, "hardly alike": 2.0}


def study(generator: torch.Generator, noise: float) -> tuple[Tensor, Tensor]:
    """Features of two networks on the same images."""
    draw = [torch.randn(NUM_IMAGES, c, dtype=torch.float64, generator=generator) for c in (32, 24)]
    x = draw[0] * SPREAD
    return x + 3, x @ MAP + noise * draw[1]


def true_cka(noise: float) -> float:
    """Of all images that there are: |Cxy|^2 / (|Cxx| |Cyy|)."""
    of_x = torch.diag(SPREAD**2)
    of_y = MAP.T @ of_x @ MAP + noise**2 * torch.eye(24, dtype=torch.float64)
    return float((of_x @ MAP).square().sum() / of_x.norm() / of_y.norm())


@pytest.mark.guarantee("N10", "the same for CKA, whether small or large")
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_intervals_of_cka_hold_the_truth_in_93_to_97_percent_of_studies(noise: float) -> None:
    generator, truth = torch.Generator().manual_seed(1), true_cka(noise)
    found = [cka_interval(*study(generator, noise)) for _ in range(NUM_STUDIES)]
    assert 0.93 <= np.mean([_holds(one, truth) for one in found]) <= 0.97


@pytest.mark.guarantee("N10", "the same for RankMe of so many images")
def test_intervals_of_rank_me_hold_the_mean_of_studies_as_large_in_93_to_97_percent() -> None:
    generator = torch.Generator().manual_seed(2)
    found = [rank_me_interval(study(generator, 1.0)[0]) for _ in range(NUM_STUDIES)]
    mean = float(np.mean([one.value for one in found]))
    assert 0.93 <= np.mean([_holds(one, mean) for one in found]) <= 0.97


def test_images_that_are_drawn_twice_move_cka_up_and_rank_me_down() -> None:
    """Why there is no bootstrap: its draws lie beside the figure, not around it."""
    x, y = study(torch.Generator().manual_seed(3), 2.0)
    generator = torch.Generator().manual_seed(4)
    draws = torch.randint(NUM_IMAGES, (200, NUM_IMAGES), generator=generator)
    assert np.quantile([cka(x[draw], y[draw]) for draw in draws], 0.1) > cka(x, y)
    assert np.quantile([rank_me(x[draw]) for draw in draws], 0.9) < rank_me(x)


def test_features_are_alike_up_to_a_rotation_and_a_scale_and_not_by_width_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 200, generator=generator)
    turned = torch.linalg.qr(torch.randn(200, 200, generator=generator))[0]
    assert cka(x, 3 * x @ turned + 1) == pytest.approx(1, abs=1e-6)
    other = torch.randn(60, 200, generator=generator)
    assert abs(cka(x, other)) < 0.1, "the biased estimate would be near 0.8"
    assert math.isnan(cka(x[:3], x[:3]))


def test_neighbours_are_shared_by_equal_features_and_by_chance_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, 16, generator=generator) for _ in range(2))
    assert torch.equal(neighbour_overlap(x, 2 * x), torch.ones(200, dtype=torch.float64))
    assert neighbour_overlap(x, y).mean() == pytest.approx(10 / 199, abs=0.02)


@given(st.integers(1, 12))
def test_as_many_directions_are_counted_as_there_are(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(200, rank, generator=generator))[0]
    x = basis @ torch.linalg.qr(torch.randn(16, rank, generator=generator))[0].T
    assert rank_me(x) == pytest.approx(rank, rel=1e-3)


def test_features_that_differ_by_a_rotation_are_alike_without_doubt() -> None:
    x, _ = study(torch.Generator().manual_seed(3), 1.0)
    found = cka_interval(x, 2 * x)
    assert found.low == found.high == found.value == pytest.approx(1)


def test_few_images_have_a_likeness_and_no_interval() -> None:
    x, y = study(torch.Generator().manual_seed(3), 1.0)
    few = MIN_IMAGES - 1
    assert cka_interval(x[:few], y[:few]).low is None
    assert rank_me_interval(x[:few]).low is None
    assert math.isnan(cka_interval(x[:3], y[:3]).value)


def _holds(found: Interval, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high
