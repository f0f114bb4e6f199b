"""Normalizers: one affine map per teacher and token kind, fitted from its moments.

y = W (x - mean) and x = Theta y + mean for column vectors; row-major arrays multiply by the
transpose on the right. P stands for arXiv:2410.01680.

c width, C the number of channels in formulas, S covariance = U diag(l) U^T with l descending,
W forward (c, c), Theta inverse (c, c), R rotation (c, c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

import msgspec
import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.format import tensor_file
from phistill.compute.blas import one_blas_thread
from phistill.display import facts_html
from phistill.errors import UsageError

from ..moments.moments import Moments
from .methods import Matrix, Vector, fit_map

FORMAT: Literal[1] = 1
"""Version of the stored form, raised when its arrays or metadata change their meaning."""


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored beside the arrays."""

    format: Literal[1]
    method: str
    width: int
    rotation: str | None
    options: dict[str, float]
    moments_digest: str


@dataclass(frozen=True, eq=False)
class Normalizer:
    """A fitted affine map; an unfitted one cannot exist.

    forward is W, inverse is Theta, both float64. rotation says how the rotation was made, or is
    None for methods without one. options are the fit's own, with every default it filled in.
    moments_digest names the moments it was fitted from and is empty when the caller did not say.
    """

    method: str
    mean: Vector
    forward: Matrix
    inverse: Matrix
    rotation: str | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    moments_digest: str = ""

    def __post_init__(self) -> None:
        c = len(self.mean)
        for name, array, shape in (
            ("mean", self.mean, (c,)),
            ("forward", self.forward, (c, c)),
            ("inverse", self.inverse, (c, c)),
        ):
            if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
                raise UsageError(
                    f"{name} of the {self.method!r} normalizer is {array.dtype} {array.shape}; "
                    f"wanted finite float64 of shape {shape}. Fit it again."
                )
            array.flags.writeable = False
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __repr__(self) -> str:
        return (
            f"Normalizer({self.method!r}, width={self.width}, scale={self.scale:.4g}, "
            f"rotation={self.rotation!r})"
        )

    def _repr_html_(self) -> str:
        facts = {"width": self.width, "scale": f"{self.scale:.4g}", "rotation": self.rotation}
        return facts_html(f"Normalizer {self.method}", {**facts, **self.options})

    def __reduce__(self) -> tuple[Any, ...]:
        return Normalizer.from_arrays, (self.to_arrays(), self.metadata())

    @classmethod
    def fit(
        cls,
        moments: Moments,
        method: str = "phi-s",
        *,
        moments_digest: str = "",
        **options: float,
    ) -> Normalizer:
        """Fit one of METHODS from moments.

        pca, zca and hca take `shrinkage` s in [0, 1], which fits S' = (1 - s) S + s mean(l) I, and
        `eigenvalue_floor` f, which raises every l_i to at least f max(l); by default s = 0 and
        f = sqrt(C) eps with the rounding eps of the moments, below which an eigenvalue is noise.
        Raises UsageError for an unknown method or option, DegenerateMoments for n < 2 and when
        every vector is the same.
        """
        # One BLAS thread, so that the bits do not depend on how many cores a machine has.
        with one_blas_thread():
            return cls(method, *fit_map(moments, method, options), moments_digest)

    @property
    def width(self) -> int:
        """c, the length of one vector."""
        return len(self.mean)

    @property
    def scale(self) -> float:
        """sqrt(trace(Theta Theta^T) / C): phi for phi-s and isotropic, sigma_g for global."""
        return float(np.sqrt(np.sum(np.square(self.inverse)) / self.width))

    def transform(self, x: Shaped[np.ndarray, "... c"]) -> Float[np.ndarray, "... c"]:
        """y = W (x - mean): float64 for float64 input, otherwise float32.

        The mean is taken off in float64 in either case: a float32 mean would be wrong by a
        thousandth of a standard deviation where mean / std is 1e4.
        """
        self._check(x)
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        centred = np.subtract(x, self.mean, dtype=np.float64).astype(dtype, copy=False)
        return centred @ self.forward.T.astype(dtype, copy=False)

    def inverse_transform(self, y: Shaped[np.ndarray, "... c"]) -> Float[np.ndarray, "... c"]:
        """x = Theta y + mean: float64 for float64 input, otherwise float32."""
        self._check(y)
        dtype = np.float64 if y.dtype == np.float64 else np.float32
        spread = y.astype(dtype, copy=False) @ self.inverse.T.astype(dtype, copy=False)
        return np.add(spread, self.mean, dtype=np.float64).astype(dtype, copy=False)

    def fold(
        self, weight: Shaped[np.ndarray, "o h"], bias: Shaped[np.ndarray, " o"] | None = None
    ) -> tuple[Float[np.ndarray, "o h"], Float[np.ndarray, " o"]]:
        """Weight and bias, in float64, of the linear layer followed by the inverse (P, A.6).

        W = Theta W' and b = Theta b' + mean. o = r c for a layer that emits r vectors at once
        (pixel shuffle): Theta is then block-diagonal. A layer without a bias gains one.
        """
        rows, c = weight.shape[0], self.width
        if rows % c:
            raise UsageError(
                f"weight of shape {weight.shape} must have a multiple of the width {c} as rows."
            )
        inner = np.zeros(rows) if bias is None else np.asarray(bias, dtype=np.float64)
        if inner.shape != (rows,):
            raise UsageError(f"bias of shape {inner.shape} must be ({rows},) as the weight says.")
        blocks = np.asarray(weight, dtype=np.float64).reshape(rows // c, c, -1)
        folded = np.matmul(self.inverse, blocks).reshape(weight.shape)
        shift = inner.reshape(-1, c) @ self.inverse.T + self.mean
        return folded, shift.reshape(rows)

    def to_arrays(self) -> dict[str, Float[np.ndarray, "*shape"]]:
        """mean (c,), forward (c, c) and inverse (c, c), float64."""
        return {"mean": self.mean, "forward": self.forward, "inverse": self.inverse}

    def metadata(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        facts = _Facts(
            format=FORMAT,
            method=self.method,
            width=self.width,
            rotation=self.rotation,
            options=dict(self.options),
            moments_digest=self.moments_digest,
        )
        return cast(dict[str, Any], msgspec.to_builtins(facts))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Shaped[np.ndarray, "*shape"]], metadata: Mapping[str, Any]
    ) -> Normalizer:
        """The normalizer that to_arrays() and metadata() came from, bit for bit."""
        try:
            facts = msgspec.convert(metadata, _Facts)
            mean, forward, inverse = (
                np.array(arrays[name]) for name in ("mean", "forward", "inverse")
            )
        except (msgspec.ValidationError, KeyError) as error:
            raise UsageError(
                f"A stored normalizer of format {FORMAT} was wanted ({error}). Fit it again."
            ) from error
        return cls(
            facts.method,
            mean,
            forward,
            inverse,
            facts.rotation,
            facts.options,
            facts.moments_digest,
        )

    def to_bytes(self) -> bytes:
        """One safetensors file with a digest: the three arrays and the metadata."""
        return tensor_file.encode(self.to_arrays(), self.metadata())

    @classmethod
    def from_bytes(cls, data: bytes) -> Normalizer:
        """Read to_bytes() back; UsageError when the bytes are something else or were changed."""
        try:
            arrays, metadata = tensor_file.decode(data)
        except ValueError as error:
            raise UsageError(
                f"These {len(data)} bytes are not a stored normalizer ({error}). Fit it again."
            ) from error
        return cls.from_arrays(arrays, metadata)

    def _check(self, x: Shaped[np.ndarray, "... c"]) -> None:
        if x.shape[-1:] != self.mean.shape:
            raise UsageError(
                f"An array of shape {x.shape} does not end in the width {self.width} "
                f"this {self.method!r} normalizer was fitted for."
            )
