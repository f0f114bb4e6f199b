"""What a pass over an array yields, and its stored form.

A PassResult is the moments with the histogram of squared norms and, at a few sizes on the way, a
Sketch: enough to say how far the statistics still moved. It is stored as one safetensors file of
float64 arrays with a digest, the scatter as its upper triangle.

c width, k leading directions of a sketch, bins of the histogram.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.format import tensor_file
from phistill.errors import CorruptCache

from .moments import Moments
from .squared_norms import NUM_BINS, SquaredNorms

SKETCH_DIRECTIONS = 8
"""Leading eigenvectors a sketch keeps: what PCA maps and the eye follow."""

SKETCH_ITERATIONS = 20
"""Of subspace iteration: directions whose eigenvalues differ by a fifth are then told apart to
1e-3, and nearer ones turn into each other with the data anyway."""

Facts = TypeVar("Facts", bound=msgspec.Struct)


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


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says beside its arrays."""

    n: int
    eps: float
    num_rows: int
    sketches: list[tuple[int, int, float]]
    """num_rows, n and phi of each."""
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class PassResult:
    """Moments and squared norms of num_rows rows, and sketches at smaller sizes, ascending."""

    num_rows: int
    moments: Moments
    squared_norms: SquaredNorms
    sketches: tuple[Sketch, ...] = ()

    def __add__(self, other: PassResult) -> PassResult:
        """Merge two disjoint results; only the sketches of the left one are prefixes of both."""
        return PassResult(
            self.num_rows + other.num_rows,
            self.moments + other.moments,
            self.squared_norms + other.squared_norms,
            self.sketches,
        )

    def sketched(self) -> PassResult:
        """The same with a sketch of itself added."""
        sketch = Sketch.of(self.moments, self.num_rows)
        return replace(self, sketches=(*self.sketches, sketch))

    @classmethod
    def zero(cls, width: int) -> PassResult:
        return cls(0, Moments.zero(width), SquaredNorms.zero())

    def to_bytes(self, facts: msgspec.Struct) -> bytes:
        """One safetensors file of this and what else is known of it."""
        moments, norms = self.moments, self.squared_norms
        bins = np.flatnonzero(norms.counts)
        arrays: dict[str, Shaped[np.ndarray, "*shape"]] = {
            "mean": moments.mean,
            "scatter": moments.scatter[np.triu_indices(moments.width)],
            "squared_norm_bins": bins,
            "squared_norm_counts": norms.counts[bins],
            "squared_norm_sums": norms.sums[bins],
        }
        for i, sketch in enumerate(self.sketches):
            arrays[f"sketch{i}.mean"] = sketch.mean
            arrays[f"sketch{i}.axes"] = sketch.axes
        header = _Header(
            n=moments.n,
            eps=moments.eps,
            num_rows=self.num_rows,
            sketches=[(s.num_rows, s.n, s.phi) for s in self.sketches],
            facts=msgspec.to_builtins(facts),
        )
        return tensor_file.encode(arrays, msgspec.to_builtins(header))

    @classmethod
    def from_bytes(cls, data: bytes, where: str, facts: type[Facts]) -> tuple[PassResult, Facts]:
        """Read to_bytes() back; CorruptCache naming ``where`` when anything differs."""
        try:
            arrays, metadata = tensor_file.decode(data)
            header = msgspec.convert(metadata, _Header)
            return cls._of(arrays, header), msgspec.convert(header.facts, facts)
        except (ValueError, KeyError, IndexError, msgspec.ValidationError) as error:
            raise CorruptCache(
                f"{where} does not hold the statistics of a pass ({error}). "
                "Run `phistill fit-stats` again."
            ) from error

    @classmethod
    def _of(cls, arrays: Mapping[str, Any], header: _Header) -> PassResult:
        mean = arrays["mean"]
        width = len(mean)
        scatter = np.zeros((width, width))
        upper = np.triu_indices(width)
        scatter[upper] = arrays["scatter"]
        scatter.T[upper] = arrays["scatter"]
        counts, sums = np.zeros(NUM_BINS, dtype=np.int64), np.zeros(NUM_BINS)
        counts[arrays["squared_norm_bins"]] = arrays["squared_norm_counts"]
        sums[arrays["squared_norm_bins"]] = arrays["squared_norm_sums"]
        sketches = tuple(
            Sketch(num_rows, n, phi, arrays[f"sketch{i}.mean"], arrays[f"sketch{i}.axes"])
            for i, (num_rows, n, phi) in enumerate(header.sketches)
        )
        moments = Moments(header.n, mean, scatter, header.eps)
        return cls(header.num_rows, moments, SquaredNorms(counts, sums), sketches)


def moments_digest(moments: Moments) -> str:
    """sha256 (hex) of count, mean and scatter: what a normalizer was fitted from."""
    total = hashlib.sha256(str(moments.n).encode())
    total.update(moments.mean.tobytes())
    total.update(moments.scatter.tobytes())
    return total.hexdigest()
