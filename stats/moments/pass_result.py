"""What a pass over an array yields, and its stored form.

A Summary is the moments with the histogram of token energies and, at a few sizes on the way, a
Sketch: enough to say how far the statistics still moved. It is stored as one sealed safetensors
file of float64 arrays, the scatter as its upper triangle.

c width, k leading directions of a sketch, bins of the histogram.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.format.tensors import seal, unseal
from phistill.errors import CorruptCache

from .moments import Moments
from .squared_norms import NUM_BINS, Energies

SKETCH_DIRECTIONS = 8
"""Leading eigenvectors a sketch keeps: what PCA maps and the eye follow."""

SKETCH_ITERATIONS = 20
"""Of subspace iteration: directions whose eigenvalues differ by a fifth are then told apart to
1e-3, and nearer ones turn into each other with the data anyway."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """The state of the statistics after some rows: mean (c,), phi and leading axes (c, k)."""

    num_rows: int
    n: int
    phi: float
    mean: Float[np.ndarray, " c"]
    axes: Float[np.ndarray, "c k"]

    @classmethod
    def of(cls, moments: Moments, num_rows: int) -> Sketch:
        """Sketch moments; the axes come from subspace iteration, which is cheap beside eigh."""
        phi = float(np.sqrt(np.mean(moments.variance))) if moments.n else 0.0
        k = min(SKETCH_DIRECTIONS, moments.width)
        axes = np.linalg.qr(np.cos(np.outer(np.arange(moments.width) + 1.0, np.arange(k) + 1.0)))[0]
        for _ in range(SKETCH_ITERATIONS):
            axes = np.linalg.qr(moments.scatter @ axes)[0]
        return cls(num_rows, moments.n, phi, moments.mean, axes)


@dataclass(frozen=True, eq=False)
class Summary:
    """Moments and energies of num_rows rows, and sketches at smaller sizes, ascending."""

    num_rows: int
    moments: Moments
    energies: Energies
    sketches: tuple[Sketch, ...] = ()

    def __add__(self, other: Summary) -> Summary:
        """Merge two disjoint summaries; only the sketches of the left one are prefixes of both."""
        return Summary(
            self.num_rows + other.num_rows,
            self.moments + other.moments,
            self.energies + other.energies,
            self.sketches,
        )

    def sketched(self) -> Summary:
        """The same with a sketch of itself added."""
        sketch = Sketch.of(self.moments, self.num_rows)
        return replace(self, sketches=(*self.sketches, sketch))

    @classmethod
    def zero(cls, width: int) -> Summary:
        return cls(0, Moments.zero(width), Energies.zero())


@dataclass(frozen=True, eq=False)
class Stored:
    """A summary with the JSON facts it is stored with."""

    summary: Summary
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """One safetensors file."""
        moments, energies = self.summary.moments, self.summary.energies
        bins = np.flatnonzero(energies.counts)
        arrays: dict[str, Shaped[np.ndarray, "*shape"]] = {
            "mean": moments.mean,
            "scatter": moments.scatter[np.triu_indices(moments.width)],
            "energy_bins": bins,
            "energy_counts": energies.counts[bins],
            "energy_sums": energies.sums[bins],
        }
        for i, sketch in enumerate(self.summary.sketches):
            arrays[f"sketch{i}.mean"] = sketch.mean
            arrays[f"sketch{i}.axes"] = sketch.axes
        metadata = {
            "n": moments.n,
            "eps": moments.eps,
            "num_rows": self.summary.num_rows,
            "sketches": [[s.num_rows, s.n, s.phi] for s in self.summary.sketches],
            "facts": dict(self.facts),
        }
        return seal(arrays, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Stored:
        """Read to_bytes() back; CorruptCache naming `what` when anything differs."""
        try:
            arrays, metadata = unseal(data)
            return cls(_summary(arrays, metadata), metadata["facts"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptCache(
                f"{what} is not a stored summary ({error}). Run `phistill fit-stats` again."
            ) from error


def _summary(arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> Summary:
    mean = arrays["mean"]
    width = len(mean)
    scatter = np.zeros((width, width))
    upper = np.triu_indices(width)
    scatter[upper] = arrays["scatter"]
    scatter.T[upper] = arrays["scatter"]
    counts, sums = np.zeros(NUM_BINS, dtype=np.int64), np.zeros(NUM_BINS)
    counts[arrays["energy_bins"]] = arrays["energy_counts"]
    sums[arrays["energy_bins"]] = arrays["energy_sums"]
    sketches = tuple(
        Sketch(num_rows, n, phi, arrays[f"sketch{i}.mean"], arrays[f"sketch{i}.axes"])
        for i, (num_rows, n, phi) in enumerate(metadata["sketches"])
    )
    moments = Moments(metadata["n"], mean, scatter, metadata["eps"])
    return Summary(metadata["num_rows"], moments, Energies(counts, sums), sketches)


def moments_digest(moments: Moments) -> str:
    """sha256 (hex) of count, mean and scatter: what a normalizer was fitted from."""
    total = hashlib.sha256(str(moments.n).encode())
    total.update(moments.mean.tobytes())
    total.update(moments.scatter.tobytes())
    return total.hexdigest()
