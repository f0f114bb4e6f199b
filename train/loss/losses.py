"""Losses per row.

Every loss maps prediction x and target y, both (b, t, c), to one value per row (b,): the mean over
tokens and channels. A mean over rows can then be taken over any share of a batch, and a value that
is not finite names its row. P is arXiv:2410.01680.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
    what = "summary_loss" if target.kind == SUMMARY else "patch_loss"
    name: str = getattr(config, what)
    if ":" in name:
        return _checked(
            plugins.load(name, what), f"{what}={name!r}", getattr(config, what + "_options")
        )
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


def _checked(function: Callable[..., Any], named: str, options: Mapping[str, Any]) -> Loss:
    """A loss of a user's own, held to one value per row, since others would be summed with weights
    of their own, and to a gradient, since a term without one would be logged and not learnt."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = function(x, y, **options)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"{named} returned {shape} for predictions {tuple(x.shape)}; wanted one value per "
                f"row, ({len(x)},). Take the mean over tokens and channels."
            )
        if not value.is_floating_point() or (x.requires_grad and not value.requires_grad):
            raise UsageError(
                f"{named} returned {value.dtype} values that have no gradient: the student would "
                "learn nothing from them. Compute them from the prediction with torch, without "
                "detach, whole numbers or NumPy."
            )
        return value

    return loss
