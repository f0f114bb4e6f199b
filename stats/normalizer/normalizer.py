"""Normalizers: one affine map per teacher and token kind, fitted from its moments.

y = W (x - mean) and x = Theta y + mean for column vectors; row-major arrays multiply by the
transpose on the right. P stands for arXiv:2410.01680.

c width, C the number of channels in formulas, S covariance = U diag(l) U^T with l descending,
W forward (c, c), Theta inverse (c, c), R rotation (c, c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.format.tensors import seal, unseal
from phistill.compute.blas import one_blas_thread
from phistill.errors import DegenerateMoments, UsageError

from ..moments.moments import FLOAT64_EPS, Moments
from .rotation import rotation

FORMAT = 1
"""Version of the stored form, raised when its arrays or metadata change their meaning."""

Matrix = Float[np.ndarray, "c c"]
Vector = Float[np.ndarray, " c"]


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
        if method not in _FITS:
            raise UsageError(f"method={method!r} is unknown. Take one of {', '.join(METHODS)}.")
        unknown = sorted(set(options) - set(_OPTIONS.get(method, ())))
        if unknown:
            allowed = ", ".join(_OPTIONS.get(method, ())) or "none"
            raise UsageError(
                f"method={method!r} does not take {', '.join(unknown)}; its options: {allowed}."
            )
        _check_spread(moments)
        # One BLAS thread, so that the bits do not depend on how many cores a machine has.
        with one_blas_thread():
            return _FITS[method](moments, method, moments_digest, dict(options))

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
        return {
            "format": FORMAT,
            "method": self.method,
            "width": self.width,
            "rotation": self.rotation,
            "options": dict(self.options),
            "moments_digest": self.moments_digest,
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Shaped[np.ndarray, "*shape"]], metadata: Mapping[str, Any]
    ) -> Normalizer:
        """The normalizer that to_arrays() and metadata() came from, bit for bit."""
        missing = sorted({"mean", "forward", "inverse"} - set(arrays))
        if missing or metadata.get("format") != FORMAT:
            raise UsageError(
                f"A stored normalizer has format {metadata.get('format')!r} and lacks "
                f"{', '.join(missing) or 'no array'}; wanted format {FORMAT}. Fit it again."
            )
        return cls(
            method=str(metadata["method"]),
            mean=np.array(arrays["mean"]),
            forward=np.array(arrays["forward"]),
            inverse=np.array(arrays["inverse"]),
            rotation=metadata["rotation"],
            options={str(k): float(v) for k, v in metadata["options"].items()},
            moments_digest=str(metadata["moments_digest"]),
        )

    def to_bytes(self) -> bytes:
        """One safetensors file with a digest: the three arrays and the metadata."""
        return seal(self.to_arrays(), self.metadata())

    @classmethod
    def from_bytes(cls, data: bytes) -> Normalizer:
        """Read to_bytes() back; UsageError when the bytes are something else or were changed."""
        try:
            arrays, metadata = unseal(data)
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


def _check_spread(moments: Moments) -> None:
    """Refuse moments that no scale can be taken from."""
    if moments.n < 2:
        raise DegenerateMoments(f"n={moments.n} vectors; a normalizer needs at least 2.")
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()):
        raise DegenerateMoments(
            "The moments hold NaN or infinity. Fit them again from finite features."
        )
    total = float(np.mean(moments.variance))
    # What rounding alone leaves when one and the same vector is averaged.
    rounding = (4 * FLOAT64_EPS * float(np.max(np.abs(moments.mean)))) ** 2
    if total <= rounding:
        raise DegenerateMoments(
            f"All {moments.n} vectors are the same (mean variance {total:.3g}), so there is no "
            "scale to normalize by. Check the teacher's weights and layer."
        )


Fit = Callable[[Moments, str, str, dict[str, float]], Normalizer]


def _phi(moments: Moments) -> float:
    """sqrt(trace(S) / C) (P, Eq. 23)."""
    return float(np.sqrt(np.mean(moments.variance)))


def _none(moments: Moments, method: str, digest: str, options: dict[str, float]) -> Normalizer:
    c = moments.width
    return Normalizer(method, np.zeros(c), np.eye(c), np.eye(c), None, options, digest)


def _global(moments: Moments, method: str, digest: str, options: dict[str, float]) -> Normalizer:
    """One scalar mean and std over all vectors and channels (P, Eq. 5)."""
    c = moments.width
    mean = float(np.mean(moments.mean))
    variance = float(np.mean(moments.variance) + np.mean(np.square(moments.mean - mean)))
    sigma, identity = np.sqrt(variance), np.eye(c)
    return Normalizer(
        method, np.full(c, mean), identity / sigma, identity * sigma, None, options, digest
    )


def _standardize(
    moments: Moments, method: str, digest: str, options: dict[str, float]
) -> Normalizer:
    """Each channel by its own mean and std (P, Eq. 6); a dead channel keeps its scale."""
    variance = moments.variance
    dead = variance <= moments.width * FLOAT64_EPS * np.max(variance)
    sigma = np.sqrt(np.where(dead, 1.0, variance))
    return Normalizer(
        method, moments.mean.copy(), np.diag(1 / sigma), np.diag(sigma), None, options, digest
    )


def _isotropic(moments: Moments, method: str, digest: str, options: dict[str, float]) -> Normalizer:
    """PHI-S without its rotation: mean vector and one scale phi."""
    phi, identity = _phi(moments), np.eye(moments.width)
    return Normalizer(
        method, moments.mean.copy(), identity / phi, identity * phi, None, options, digest
    )


def _phi_s(moments: Moments, method: str, digest: str, options: dict[str, float]) -> Normalizer:
    """W = (1 / phi) R U^T, Theta = phi U R^T (P, Eq. 21 to 26)."""
    values, u = eigenbasis(moments)
    r, kind = rotation(values)
    phi = _phi(moments)
    turn = r @ u.T
    return Normalizer(method, moments.mean.copy(), turn / phi, turn.T * phi, kind, options, digest)


def _whiten(moments: Moments, method: str, digest: str, options: dict[str, float]) -> Normalizer:
    """V l^-1/2 U^T and U l^1/2 V^T: V = I is pca (P, Eq. 11), U zca (8, 12), R hca (19)."""
    values, u = eigenbasis(moments)
    shrinkage = options.setdefault("shrinkage", 0.0)
    floor = options.setdefault("eigenvalue_floor", float(np.sqrt(moments.width)) * moments.eps)
    if not (0 <= shrinkage <= 1 and 0 < floor <= 1):
        raise UsageError(
            f"shrinkage={shrinkage} must lie in [0, 1] and eigenvalue_floor={floor} in (0, 1]."
        )
    values = (1 - shrinkage) * values + shrinkage * np.mean(values)
    spread = np.sqrt(np.maximum(values, floor * np.max(values)))
    kind = None
    forward, inverse = u.T / spread[:, None], u * spread
    if method == "zca":
        forward, inverse = u @ forward, inverse @ u.T
    elif method == "hca":
        r, kind = rotation(np.ones_like(values))
        forward, inverse = r @ forward, inverse @ r.T
    return Normalizer(method, moments.mean.copy(), forward, inverse, kind, options, digest)


def eigenbasis(moments: Moments) -> tuple[Vector, Matrix]:
    """Eigenvalues (c,), descending and not negative, and eigenvectors (c, c) in columns.

    Each column's sign makes its diagonal entry not negative (P, Fig. 4). An eigenvalue that is
    negative by no more than C eps max(l) is rounding and becomes 0; below that the scatter is no
    scatter and DegenerateMoments is raised.
    """
    values, u = moments.spectrum
    values, u = values[::-1], u[:, ::-1]
    lowest = -moments.width * moments.eps * values[0]
    if values[-1] < lowest:
        raise DegenerateMoments(
            f"The covariance has an eigenvalue of {values[-1]:.3g}, below the {lowest:.3g} that "
            "rounding explains. The moments are wrong: fit them again."
        )
    return np.maximum(values, 0.0), np.where(np.diagonal(u) < 0, -u, u)


_FITS: dict[str, Fit] = {
    "none": _none,
    "global": _global,
    "standardize": _standardize,
    "isotropic": _isotropic,
    "phi-s": _phi_s,
    "pca": _whiten,
    "zca": _whiten,
    "hca": _whiten,
}
_OPTIONS = dict.fromkeys(("pca", "zca", "hca"), ("shrinkage", "eigenvalue_floor"))

METHODS: tuple[str, ...] = tuple(_FITS)
"""Names Normalizer.fit takes, in the order reports list them."""
