"""Losses against the formulas, written out, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from phistill.errors import UsageError
from phistill.train.config import TrainConfig
from phistill.train.loss.balance import Balance
from phistill.train.loss.losses import (
    balanced_angle,
    cosine,
    hybrid,
    make_loss,
    mse,
    smooth_l1,
)
from phistill.train.targets import Target

PATCHES = Target(teacher="a", kind="patches", width=5, grid=(2, 2))
SUMMARY = Target(teacher="a", kind="summary", width=5, grid=(1, 1))


def assert_same(x: Tensor, y: Tensor) -> None:
    """Up to the rounding of float64 sums of some 20 numbers."""
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 2


def naive_cosine(x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for i in range(len(x)):
        tokens = [
            1
            - float(x[i, t] @ y[i, t])
            / math.sqrt(float(x[i, t] @ x[i, t]) * float(y[i, t] @ y[i, t]))
            for t in range(x.shape[1])
        ]
        rows.append(sum(tokens) / len(tokens))
    return torch.tensor(rows, dtype=torch.float64)


def test_losses_are_the_papers_formulas_per_row() -> None:
    x, y = pair()
    squares = torch.stack([((x[i] - y[i]) ** 2).sum() / 20 for i in range(3)])
    gap = (x - y).abs()
    huber = torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum((1, 2)) / 20
    assert_same(mse(x, y), squares)
    assert_same(smooth_l1(x, y), huber)
    assert_same(cosine(x, y), naive_cosine(x, y))
    mixed = hybrid(x, y, second=smooth_l1, beta=0.9)
    assert_same(mixed, 0.9 * naive_cosine(x, y) + 0.1 * huber)


def test_balanced_angle_is_one_at_the_targets_own_dispersion() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(500, 1, 6, generator=generator, dtype=torch.float64) + 0.5
    mean = y.mean(0, keepdim=True)
    angles = torch.arccos(torch.nn.functional.cosine_similarity(y, mean, dim=-1))
    loss = balanced_angle(mean.expand_as(y), y, dispersion=float(angles.square().mean()))
    assert float(loss.mean()) == pytest.approx(1, abs=1e-6)  # the clamp at 1 - 2^-23


def test_the_angle_has_a_finite_gradient_where_prediction_meets_target() -> None:
    y = torch.randn(4, 1, 6)
    x = y.clone().requires_grad_()
    naive = torch.arccos(torch.nn.functional.cosine_similarity(x, y, dim=-1)).square().sum()
    assert not torch.isfinite(torch.autograd.grad(naive, x)[0]).all()
    gradient = torch.autograd.grad(balanced_angle(x, y, dispersion=1.0).sum(), x)[0]
    assert torch.isfinite(gradient).all()


def test_patches_and_summaries_take_their_own_loss() -> None:
    config = TrainConfig(patch_loss="hybrid-mse", summary_loss="balanced-angle")
    x, y = pair()
    patch = make_loss(PATCHES, config, None)(x, y)
    assert_same(patch, 0.9 * cosine(x, y) + 0.1 * mse(x, y))
    summary = make_loss(SUMMARY, config, 0.5)(x[:, :1], y[:, :1])
    assert_same(summary, balanced_angle(x[:, :1], y[:, :1], dispersion=0.5))


CPU = torch.device("cpu")


def adaloss() -> Balance:
    return Balance(TrainConfig(balance="adaloss", adaloss_decay=0.9), [PATCHES, SUMMARY], CPU)


def test_adaloss_brings_every_term_to_about_one() -> None:
    balance = adaloss()
    assert balance.factors().tolist() == [1.0, 1.0]
    for _ in range(50):
        balance.observe(torch.tensor([1e-4, 300.0]))
    weighted = balance.factors() * torch.tensor([1e-4, 300.0], dtype=torch.float64)
    # The observed values are float32.
    torch.testing.assert_close(weighted, torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_term_that_was_zero_so_far_counts_once_in_adaloss() -> None:
    balance = adaloss()
    balance.observe(torch.tensor([0.0, 4.0]))
    assert balance.factors().tolist() == [1.0, 0.25]


def test_adaloss_goes_on_from_its_stored_state() -> None:
    one, two = (adaloss() for _ in range(2))
    for value in (1.0, 3.0, 2.0):
        one.observe(torch.tensor([value, 1.0]))
    two.restore(one.state())
    assert two.factors().tolist() == one.factors().tolist()


def test_a_weight_that_names_nothing_is_refused() -> None:
    def factors(weights: dict[str, float]) -> list[float]:
        config = TrainConfig(balance="fixed", weights=weights)
        return Balance(config, [PATCHES, SUMMARY], CPU).factors().tolist()

    assert factors({"a": 2.0, "a/summary": 0.5}) == [2.0, 0.5]
    with pytest.raises(UsageError, match="a/patches, a/summary"):
        factors({"b": 1.0})


def per_token(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean(-1)


def one_number(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean()


def not_a_tensor(x: Tensor, y: Tensor) -> float:
    return float(one_number(x, y))


@pytest.mark.parametrize(
    ("loss", "shape"), [(per_token, r"\(3, 4\)"), (one_number, r"\(\)"), (not_a_tensor, "float")]
)
def test_a_loss_of_ones_own_gives_one_value_per_row(loss: object, shape: str) -> None:
    name = loss.__name__  # type: ignore[attr-defined]
    config = TrainConfig(patch_loss=f"{__name__}:{name}")
    with pytest.raises(UsageError, match=rf"returned {shape} .* wanted one value per row, \(3,\)"):
        make_loss(PATCHES, config, None)(*pair())


def scaled(x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    return scale * mse(x, y)


def test_a_loss_of_ones_own_takes_options() -> None:
    config = TrainConfig(patch_loss=f"{__name__}:scaled", patch_loss_options={"scale": 3})
    x, y = pair()
    assert_same(make_loss(PATCHES, config, None)(x, y), 3 * mse(x, y))


def detached(x: Tensor, y: Tensor) -> Tensor:
    return mse(x, y).detach()


def whole(x: Tensor, y: Tensor) -> Tensor:
    return mse(x, y).long()


def of_the_target(x: Tensor, y: Tensor) -> Tensor:
    return y.square().mean((1, 2))


@pytest.mark.parametrize("loss", [detached, whole, of_the_target])
def test_a_loss_of_ones_own_without_a_gradient_is_refused(loss: object) -> None:
    name = loss.__name__  # type: ignore[attr-defined]
    checked = make_loss(PATCHES, TrainConfig(patch_loss=f"{__name__}:{name}"), None)
    with pytest.raises(UsageError, match="have no gradient: the student would learn nothing"):
        checked(torch.ones(3, 4, 5, requires_grad=True), torch.zeros(3, 4, 5))
