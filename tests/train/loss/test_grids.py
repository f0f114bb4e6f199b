"""Grids of different sizes and crops."""

from __future__ import annotations

import pytest
import torch

from phistill.train.loss.token_grids import Crop, GridRule, overlap

B, C = 2, 3


def tokens(h: int, w: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, h, w, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("side", "grid"), [("student", (4, 9)), ("teacher", (6, 6)), ("smaller", (4, 6))]
)
def test_the_side_that_moves_decides_where_grids_meet(side: str, grid: tuple[int, int]) -> None:
    assert GridRule(side=side).meeting((6, 6), (4, 9)) == grid


def test_equal_grids_are_left_alone() -> None:
    x = tokens(4, 4)
    assert GridRule().resize(x, (4, 4)) is x


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_moving_a_grid_commutes_with_an_affine_map(interpolation: str) -> None:
    rule = GridRule(interpolation=interpolation)
    x = tokens(4, 4).double()
    matrix = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved_first = rule.resize(x, (7, 5)) @ matrix + 10
    mapped_first = rule.resize(x @ matrix + 10, (7, 5))
    # Bicubic weights are computed in a way that sums to 1 only to rounding.
    torch.testing.assert_close(moved_first, mapped_first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_crop_on_equal_grids_is_a_plain_slice(side: str) -> None:
    whole, target = tokens(6, 6), tokens(6, 6, seed=1)
    crop = Crop(top=1, left=2, side=3, full=6)
    prediction = whole[:, 1:4, 2:5]
    x, y = overlap(prediction, target, crop, side)
    assert torch.equal(x, prediction)
    assert torch.equal(y, target[:, 1:4, 2:5])


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("grid", [(6, 6), (4, 4), (9, 9)])
def test_both_sides_of_a_crop_see_the_same_places(side: str, grid: tuple[int, int]) -> None:
    """Tokens that hold their own position, a linear map, must agree after reading bilinearly."""

    def positions(n: int) -> torch.Tensor:
        at = (torch.arange(n) + 0.5) / n
        return torch.stack(torch.meshgrid(at, at, indexing="ij"), -1)[None].float()

    full, crop = positions(6), Crop(top=2, left=1, side=4, full=6)
    x, y = overlap(full[:, 2:6, 1:5], positions(grid[0]), crop, side)
    assert x.shape == y.shape
    # Reading is clamped at the window's outer half token, where the map is no longer linear.
    inner = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(x[inner], y[inner], rtol=0, atol=1e-6)


def test_tokens_belong_to_the_crop_their_centres_lie_in() -> None:
    crop = Crop(top=1, left=0, side=2, full=4)
    assert crop.seen(4, crop.top) == (1, 3)
    assert crop.seen(2, crop.top) == (0, 1)
    # Together neighbouring windows see every token once.
    parts = [Crop(top=top, left=0, side=2, full=6).seen(9, top) for top in (0, 2, 4)]
    assert [stop for _, stop in parts[:-1]] == [start for start, _ in parts[1:]]
    assert (parts[0][0], parts[-1][1]) == (0, 9)
