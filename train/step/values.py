"""What steps measure. It stays on the device until the host looks, since a look waits for
everything that was asked of the device before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from phistill.compute.copies import to_host
from phistill.errors import Diverged, counted

from ..data.batch import Batch
from ..data.stream import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class StepValues:
    """What one optimizer step measured."""

    step: int
    """Steps done, this one included."""

    losses: dict[str, float]
    """Unweighted value of each term by target key: a mean over the global batch."""

    shares: dict[str, float]
    """Share of each term in the weighted sum."""

    total: float
    """The weighted sum that was minimised."""

    lr: float
    gradient_norm: float
    """Over all parameters, before clipping."""

    feature_gradients: dict[str, float]
    """Norm of each weighted term's gradient at the student's last shared features; often empty."""


class NotFinite(Diverged):
    """A step whose loss or gradient is not finite; ``facts`` names its rows."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


@dataclass(frozen=True, eq=False, slots=True)
class RowLosses:
    """The loss of each row of a part, without what it was computed from."""

    rows: Rows
    positions: Mapping[str, NDArray[np.int64]]
    """By target key: which of ``rows`` have the target."""

    losses: Mapping[str, Tensor]
    """By target key: (n,), on the device."""

    @classmethod
    def of(cls, part: Batch, terms: Mapping[str, Tensor]) -> RowLosses:
        positions = {key: part.positions(key) for key in terms}
        return cls(part.rows, positions, {key: value.detach() for key, value in terms.items()})

    def not_finite(self) -> list[int]:
        """Global rows whose loss is not finite, in any term."""
        bad: list[int] = []
        for key, losses in self.losses.items():
            finite = torch.isfinite(losses).cpu().numpy()
            bad += self.rows[self.positions[key][np.flatnonzero(~finite)]].tolist()
        return bad


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Measured:
    """One step as it lies on the device."""

    step: int
    lr: float
    values: Float[Tensor, " terms"]
    """Unweighted terms: means over the global batch."""

    factors: Float[Tensor, " terms"]
    gradient_norm: Float[Tensor, ""]
    squares: Float[Tensor, " terms"] | None
    """Squared norms of the weighted terms' gradients at the shared features, where measured."""

    is_finite: Bool[Tensor, ""]
    """Whether this step and all before it are."""

    rows: Sequence[RowLosses]


def look(steps: Sequence[Measured], keys: Sequence[str]) -> tuple[StepValues, list[bool]]:
    """Wait for ``steps``: the values of the last one, and whether all is finite up to each."""
    last = steps[-1]
    squares = [] if last.squares is None else [last.squares]
    finite = torch.stack([one.is_finite for one in steps])
    on_device = [last.values, last.factors, last.gradient_norm, finite, *squares]
    values, factors, norm, flags, *measured = to_host(on_device).wait()
    losses = values.double()
    weighted = factors.double() * losses
    total = float(weighted.sum())
    norms = [square.sqrt().tolist() for square in measured]
    found = StepValues(
        step=last.step,
        losses=dict(zip(keys, losses.tolist(), strict=True)),
        shares=dict(zip(keys, (weighted / total).tolist(), strict=True)) if total else {},
        total=total,
        lr=last.lr,
        gradient_norm=float(norm),
        feature_gradients=dict(zip(keys, norms[0], strict=True)) if norms else {},
    )
    return found, flags.tolist()


def not_finite(step: Measured, keys: Sequence[str], *, num_skipped: int) -> NotFinite:
    """The error for a step that is not finite; it and those after it, ``num_skipped`` in all,
    changed nothing."""
    rows = [row for part in step.rows for row in part.rows.tolist()]
    bad = sorted({row for part in step.rows for row in part.not_finite()})
    named = zip(keys, step.values.tolist(), strict=True)
    terms = ", ".join(f"{key}={value:.4g}" for key, value in named)
    after = num_skipped - 1
    left_out = f" It and the {counted(after, 'step')} after it were left out." if after else ""
    return NotFinite(
        f"step {step.step} is not finite ({terms}, gradient norm "
        f"{float(step.gradient_norm):.4g}); {len(bad)} of {len(rows)} rows have such a loss."
        f"{left_out} The weights are those of the step before. Look at the rows in the run's "
        "diverged.json, lower the learning rate, or take another normalizer.",
        {
            "step": step.step,
            "rows": rows,
            "rows_not_finite": bad,
            "num_steps_skipped": num_skipped,
        },
    )
