"""What a person is told about one array's statistics."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, Int

from phistill.cache import RowReader

from .coarse import CoarseChannels
from .moments.pass_result import PassResult, Sketch
from .moments.squared_norms import WARNING_SHARE, WARNING_VECTORS

STABLE = 1e-3
"""Relative change of mean and phi below which more images are said to add nothing."""

WITHIN = 0.01
"""Error of mean and phi, as a share of the spread, that more images are asked for down to: an error
of a hundredth changes a normalised target by a hundredth of its spread."""

BLOCK_ROWS = 4096
"""Summaries that are read at once."""


class ConvergenceStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the statistics of the first rows lie from those of all rows."""

    num_rows: int
    mean_shift: float
    """|mean - mean_all| / (phi sqrt(C)), a fraction of the typical distance to the mean."""
    phi_change: float
    """|phi / phi_all - 1|."""
    axes_shift: float
    """1 - |V^T V_all|^2 / k over the k leading eigenvectors: 0 the same space, 1 orthogonal."""


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the table: an array, its spread, and how its normalizer was made."""

    teacher: str
    kind: str
    width: int
    num_vectors: int
    mean_min: float
    mean_max: float
    std_min: float
    std_max: float
    phi: float
    """sqrt(trace(Cov) / C): the one scale of PHI-S."""
    effective_rank: float
    """exp(-sum p log p), p = s / sum s, s = sqrt of the covariance's eigenvalues (RankMe, on
    centred features)."""
    rotation: str
    num_rows: int = 0
    outlier_share: float = 0.0
    """Share of the variance held by the top 0.1 % of tokens."""
    dispersion: float | None = None
    """E[arccos(cos(y, E y))^2] of a summary, for the balanced angle loss; None for tokens."""
    convergence: tuple[ConvergenceStep, ...] = ()
    coarse: CoarseChannels | None = None
    """Channels that the stored dtype holds badly."""

    def shown(self) -> dict[str, str]:
        """The line of the table, by column."""
        return {
            "teacher": self.teacher,
            "kind": self.kind,
            "width": str(self.width),
            "vectors": f"{self.num_vectors:,}",
            "channel mean": f"{self.mean_min:.3g} .. {self.mean_max:.3g}",
            "channel std": f"{self.std_min:.3g} .. {self.std_max:.3g}",
            "phi": f"{self.phi:.4g}",
            "eff. rank": f"{self.effective_rank:.1f}",
            "rotation": self.rotation,
        }

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON values."""
        return dict(msgspec.to_builtins(self))

    @property
    def has_outliers(self) -> bool:
        """Whether a few tokens hold so much variance that they set phi."""
        enough = self.num_vectors >= WARNING_VECTORS
        return enough and self.outlier_share > WARNING_SHARE

    @property
    def stable_after(self) -> int | None:
        """Rows after which mean and phi stayed within STABLE of their final value, if they did."""
        stable = None
        for step in reversed(self.convergence):
            if max(step.mean_shift, step.phi_change) > STABLE:
                break
            stable = step.num_rows
        return stable

    @property
    def num_rows_wanted(self) -> int:
        """Rows after which mean and phi are expected within WITHIN of their limits, nearly.

        The statistics of the first m of N rows differ from those of all by s sqrt(1/m - 1/N), and
        those of n rows from their limit by s / sqrt(n); s is fitted to what was seen at doublings.
        Where nothing was seen s is 1, as of rows whose vectors are all alike. The covariance wants
        more vectors than there are channels besides.
        """
        squares = [
            max(step.mean_shift, step.phi_change) ** 2 / (1 / step.num_rows - 1 / self.num_rows)
            for step in self.convergence
            if 0 < step.num_rows < self.num_rows
        ]
        square = sum(squares) / len(squares) if squares else 1.0
        per_row = self.num_vectors / self.num_rows if self.num_rows else 1.0
        return math.ceil(max(square / WITHIN**2, (self.width + 1) / per_row))


def effective_rank(eigenvalues: Float[np.ndarray, " c"]) -> float:
    """exp of the entropy of p = s / sum s, s = sqrt(eigenvalues); between 1 and c."""
    s = np.sqrt(np.maximum(eigenvalues, 0.0))
    p = s[s > 0] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def squared_angles(
    y: Float[np.ndarray, "b c"], mean: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " b"]:
    """arccos(cos(y, mean))^2, float64; a zero vector counts as orthogonal."""
    wide = y.astype(np.float64)
    length = np.linalg.norm(wide, axis=1) * np.linalg.norm(mean)
    cosine = wide @ mean / np.where(length > 0, length, 1.0)
    return np.square(np.arccos(np.clip(cosine, -1.0, 1.0)))


def dispersion(
    reader: RowReader, rows: Int[np.ndarray, " n"], mean: Float[np.ndarray, " c"]
) -> float:
    """Angular dispersion: mean squared angle (rad^2) of summaries to their mean direction.

    With m = E[y] / |E[y]| it is E[arccos(cos(y, m))^2] (C-RADIOv4, arXiv:2601.17237). m is known
    only when the moments are, so the summaries, one vector per image, are read once more.
    """
    total = 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        block = reader.read(rows[start : start + BLOCK_ROWS])
        total += float(np.sum(squared_angles(block, mean)))
    return total / len(rows)


def convergence(result: PassResult) -> tuple[ConvergenceStep, ...]:
    """Compare the sketches taken at doublings with the state at the end."""
    last = Sketch.of(result.moments, result.num_rows)
    return tuple(_step(sketch, last) for sketch in result.sketches)


def _step(sketch: Sketch, last: Sketch) -> ConvergenceStep:
    distance = float(np.linalg.norm(sketch.mean - last.mean))
    overlap = float(np.sum(np.square(sketch.axes.T @ last.axes))) / last.axes.shape[1]
    return ConvergenceStep(
        num_rows=sketch.num_rows,
        mean_shift=distance / (last.phi * float(np.sqrt(len(last.mean)))),
        phi_change=abs(sketch.phi / last.phi - 1),
        axes_shift=max(0.0, 1 - overlap),
    )
