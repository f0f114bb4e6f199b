"""Losses per row, and how the terms of several teachers are balanced.

Every loss maps prediction x and target y, both (b, t, c), to one value per row (b,): the mean over
tokens and channels. A mean over rows can then be taken over any share of a batch, and a value that
is not finite names its row. P is arXiv:2410.01680.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from phistill import plugins
from phistill.errors import UsageError

from ..config import TrainConfig
from ..targets import SUMMARY, Target

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"]) -> Float[Tensor, " b"]:
    """Mean squared error (P, Eq. 1)."""
    return (x - y).square().mean((1, 2))


def smooth_l1(x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"]) -> Float[Tensor, " b"]:
    """Quadratic below an error of 1, linear above."""
    return F.smooth_l1_loss(x, y, reduction="none").mean((1, 2))


def cosine(x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"]) -> Float[Tensor, " b"]:
    """1 - x.y / (|x| |y|), a mean over tokens (P, Eq. 2).

    A norm below 1e-8 counts as 1e-8 (torch's clamp), so that a vector of zeros has a loss of 1.
    """
    return (1 - F.cosine_similarity(x, y, dim=-1)).mean(1)


def hybrid(
    x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"], *, second: Loss, beta: float
) -> Float[Tensor, " b"]:
    """beta cosine + (1 - beta) second (P, Eq. 3 with smooth-L1, Eq. 4 with MSE)."""
    return beta * cosine(x, y) + (1 - beta) * second(x, y)


def angle(x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"]) -> Float[Tensor, "b t"]:
    """arccos of the cosine, in radians.

    The slope of arccos is infinite at +-1, so the cosine is held 2^-23, float32's own step at 1,
    away from there: an angle below 5e-4 has no gradient.
    """
    limit = 1 - 2.0**-23
    return F.cosine_similarity(x, y, dim=-1).clamp(-limit, limit).arccos()


def balanced_angle(
    x: Float[Tensor, "b t c"], y: Float[Tensor, "b t c"], *, dispersion: float
) -> Float[Tensor, " b"]:
    """angle(x, y)^2 / Disp (C-RADIOv4, arXiv:2601.17237).

    Disp = E[angle(y, m)^2], m = E[y] / |E[y]|, over the training rows.
    """
    return angle(x, y).square().mean(1) / dispersion


def make_loss(target: Target, config: TrainConfig, dispersion: float | None) -> Loss:
    """The loss of one target by the config's names."""
    name = config.summary_loss if target.kind == SUMMARY else config.patch_loss
    if ":" in name:
        return plugins.load(name, "summary_loss" if target.kind == SUMMARY else "patch_loss")
    if name == "balanced-angle":
        assert dispersion is not None, "the run measures it before it builds the losses"
        return partial(balanced_angle, dispersion=dispersion)
    known: dict[str, Loss] = {
        "mse": mse,
        "cosine": cosine,
        "hybrid-mse": partial(hybrid, second=mse, beta=config.hybrid_beta),
        "hybrid-smooth-l1": partial(hybrid, second=smooth_l1, beta=config.hybrid_beta),
    }
    return known[name]


class Balance:
    """A factor per term: 1, a fixed weight, or one over the term's running mean (AdaLoss, A.8.1).

    The running mean is m = d m + (1 - d) value with its start-up bias divided out. The factors of a
    step come from the steps before it, so that accumulated parts and ranks share them; the very
    first step, at the foot of the warm-up, counts every term once.
    """

    def __init__(self, mode: str, weights: Sequence[float], decay: float) -> None:
        self.mode, self.decay = mode, decay
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.mean = torch.zeros_like(self.weights)
        self.num_seen = 0

    def factors(self) -> Float[Tensor, " terms"]:
        if self.mode == "equal":
            return torch.ones_like(self.weights)
        if self.mode == "fixed" or not self.num_seen:
            return self.weights.clone()
        mean = self.mean / (1 - self.decay**self.num_seen)
        # A term that was 0 so far, as when no row of a small batch was its teacher's, counts once.
        return torch.where(mean > 0, 1 / mean, self.weights)

    def observe(self, values: Float[Tensor, " terms"]) -> None:
        """Take the step's unweighted terms into the running means."""
        if self.mode == "adaloss":
            self.mean = self.decay * self.mean + (1 - self.decay) * values.cpu().double()
            self.num_seen += 1

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "num_seen": self.num_seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = torch.tensor(state["mean"], dtype=torch.float64)
        self.num_seen = int(state["num_seen"])


def fixed_weights(targets: Sequence[Target], weights: Mapping[str, float]) -> list[float]:
    """A weight per target; UsageError for a name that is no target, or a weight below 0."""
    known = {target.key for target in targets} | {target.teacher for target in targets}
    for name, value in weights.items():
        if name not in known or not (math.isfinite(value) and value >= 0):
            raise UsageError(
                f"weights[{name!r}]={value} must name one of {', '.join(sorted(known))} "
                "and be at least 0."
            )
    return [float(weights.get(target.key, weights.get(target.teacher, 1.0))) for target in targets]
