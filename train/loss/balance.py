"""How the terms of several teachers are balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phistill.compute.precision import widest_float
from phistill.errors import UsageError

from ..config import TrainConfig
from ..targets import Target


class Balance:
    """A factor per term: 1, a fixed weight, or one over the term's running mean (AdaLoss, A.8.1).

    The running mean is m = d m + (1 - d) value with its start-up bias divided out. The factors of a
    step come from the steps before it, so that accumulated parts and ranks share them; the very
    first step, at the foot of the warm-up, counts every term once. All of it stays on the device.
    """

    def __init__(
        self, config: TrainConfig, targets: Sequence[Target], device: torch.device
    ) -> None:
        self.mode, self.decay = config.balance, config.adaloss_decay
        weights = _weights(targets, config.weights)
        self.weights = torch.tensor(weights, dtype=widest_float(device), device=device)
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

    def observe(
        self, values: Float[Tensor, " terms"], wanted: Bool[Tensor, ""] | None = None
    ) -> None:
        """Take the step's unweighted terms into the running means, unless ``wanted`` is false."""
        if self.mode == "adaloss":
            mean = self.decay * self.mean + (1 - self.decay) * values.to(self.mean.dtype)
            self.mean = mean if wanted is None else torch.where(wanted, mean, self.mean)
            self.num_seen += 1

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "num_seen": self.num_seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = torch.tensor(state["mean"], dtype=torch.float64).to(self.mean)
        self.num_seen = int(state["num_seen"])


def _weights(targets: Sequence[Target], weights: Mapping[str, float]) -> list[float]:
    """A weight per target, 1 where absent; UsageError for a name that is no target."""
    known = {target.key for target in targets} | {target.teacher for target in targets}
    for name in weights:
        if name not in known:
            raise UsageError(f"weights[{name!r}] must name one of {', '.join(sorted(known))}.")
    return [float(weights.get(target.key, weights.get(target.teacher, 1.0))) for target in targets]
