"""What a run tells: where it stands, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phistill.display import facts_html, frame

from .metrics import read_metrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    step: int
    num_steps: int
    losses: dict[str, float]
    total: float
    lr: float
    gradient_norm: float
    rows_per_s: float
    """Rows learnt per second since the last report."""

    wait_share: float
    """Share of that time spent waiting for data."""

    seconds_left: float

    @property
    def num_done(self) -> int:
        return self.step

    @property
    def num_total(self) -> int:
        return self.num_steps

    def line(self) -> str:
        """One line that tells all."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"step {self.step}/{self.num_steps}  {self.note()}  {minutes}:{seconds:02d} left"

    def note(self) -> str:
        """The line without the count of steps and the time left, which a bar shows itself."""
        losses = "  ".join(f"{key} {value:.4f}" for key, value in self.losses.items())
        return (
            f"{losses}  lr {self.lr:.2e}  "
            f"grad {self.gradient_norm:.2f}  {self.rows_per_s:.0f} rows/s  "
            f"waiting {self.wait_share:.1%}"
        )


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What ``train`` leaves behind."""

    path: Path
    num_steps: int
    resumed_from: int
    """Step the call went on from; 0 for a new run, ``num_steps`` when nothing was left to do."""

    num_rows: int
    """Training rows of one epoch."""

    num_heldout: int
    """Rows the run never learns from."""

    losses: dict[str, float]
    """Unweighted terms of the last step."""

    seconds: float
    rows_per_s: float
    wait_share: float
    in_memory: bool
    """Whether the rows were kept in memory."""

    precision: str
    checkpoint: Path

    def to_pandas(self) -> pd.DataFrame:
        """The run's metrics: a line per logged step and validation; UsageError without pandas."""
        return frame(read_metrics(self.path))

    def _repr_html_(self) -> str:
        facts = {
            "steps": f"{self.resumed_from:,} to {self.num_steps:,}",
            "rows": f"{self.num_rows:,} learnt, {self.num_heldout:,} held out",
            "speed": f"{self.rows_per_s:.0f} rows/s, {self.wait_share:.1%} waiting for data",
        }
        losses = {f"loss of {name}": f"{value:.4f}" for name, value in self.losses.items()}
        return facts_html(f"Run {self.path}", {**facts, **losses})
