"""What each method fits from moments: the registry of normalizers.

P stands for arXiv:2410.01680. c width, C the number of channels in formulas, S covariance =
U diag(l) U^T with l descending, W forward (c, c), Theta inverse (c, c), R rotation (c, c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from phistill.errors import DegenerateMoments, UsageError, did_you_mean

from ..moments.moments import FLOAT64_EPS, Moments
from .rotation import rotation

Matrix = Float[np.ndarray, "c c"]
Vector = Float[np.ndarray, " c"]


class AffineMap(NamedTuple):
    """y = W (x - mean) and x = Theta y + mean, float64."""

    mean: Vector
    forward: Matrix
    inverse: Matrix
    rotation: str | None = None
    """How R was made, where the method has one."""
    options: Mapping[str, float] = {}
    """The method's own, with every default it filled in."""


def unknown_method(method: str) -> UsageError:
    """The refusal of what is not one of METHODS."""
    near = did_you_mean(method, METHODS)
    return UsageError(f"method={method!r} is unknown. Take one of {', '.join(METHODS)}.{near}")


def fit_map(moments: Moments, method: str, options: Mapping[str, float]) -> AffineMap:
    """Fit one of METHODS; errors as Normalizer.fit."""
    if method not in _FITS:
        raise unknown_method(method)
    allowed = WHITENING_OPTIONS if method in WHITENING else ()
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise UsageError(
            f"method={method!r} does not take {', '.join(unknown)}; its options: "
            f"{', '.join(allowed) or 'none'}."
        )
    check_spread(moments)
    return _FITS[method](moments, options)


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


def check_spread(moments: Moments) -> None:
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


def _phi(moments: Moments) -> float:
    """sqrt(trace(S) / C) (P, Eq. 23)."""
    return float(np.sqrt(np.mean(moments.variance)))


def _none(moments: Moments, _options: Mapping[str, float]) -> AffineMap:
    c = moments.width
    return AffineMap(np.zeros(c), np.eye(c), np.eye(c))


def _global(moments: Moments, _options: Mapping[str, float]) -> AffineMap:
    """One scalar mean and std over all vectors and channels (P, Eq. 5)."""
    c = moments.width
    mean = float(np.mean(moments.mean))
    variance = float(np.mean(moments.variance) + np.mean(np.square(moments.mean - mean)))
    sigma, identity = np.sqrt(variance), np.eye(c)
    return AffineMap(np.full(c, mean), identity / sigma, identity * sigma)


def _standardize(moments: Moments, _options: Mapping[str, float]) -> AffineMap:
    """Each channel by its own mean and std (P, Eq. 6); a dead channel keeps its scale."""
    variance = moments.variance
    dead = variance <= moments.width * FLOAT64_EPS * np.max(variance)
    sigma = np.sqrt(np.where(dead, 1.0, variance))
    return AffineMap(moments.mean.copy(), np.diag(1 / sigma), np.diag(sigma))


def _isotropic(moments: Moments, _options: Mapping[str, float]) -> AffineMap:
    """PHI-S without its rotation: mean vector and one scale phi."""
    phi, identity = _phi(moments), np.eye(moments.width)
    return AffineMap(moments.mean.copy(), identity / phi, identity * phi)


def _phi_s(moments: Moments, _options: Mapping[str, float]) -> AffineMap:
    """W = (1 / phi) R U^T, Theta = phi U R^T (P, Eq. 21 to 26)."""
    values, u = eigenbasis(moments)
    r, kind = rotation(values)
    phi = _phi(moments)
    turn = r @ u.T
    return AffineMap(moments.mean.copy(), turn / phi, turn.T * phi, kind)


def _whiten(moments: Moments, options: Mapping[str, float], *, method: str) -> AffineMap:
    """V l^-1/2 U^T and U l^1/2 V^T: V = I is pca (P, Eq. 11), U zca (8, 12), R hca (19)."""
    values, u = eigenbasis(moments)
    shrinkage = options.get("shrinkage", 0.0)
    floor = options.get("eigenvalue_floor", float(np.sqrt(moments.width)) * moments.eps)
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
    complete = {"shrinkage": shrinkage, "eigenvalue_floor": floor}
    return AffineMap(moments.mean.copy(), forward, inverse, kind, complete)


WHITENING = ("pca", "zca", "hca")
WHITENING_OPTIONS = ("shrinkage", "eigenvalue_floor")

_FITS: dict[str, Callable[[Moments, Mapping[str, float]], AffineMap]] = {
    "none": _none,
    "global": _global,
    "standardize": _standardize,
    "isotropic": _isotropic,
    "phi-s": _phi_s,
    **{method: partial(_whiten, method=method) for method in WHITENING},
}

METHODS: tuple[str, ...] = tuple(_FITS)
"""Names Normalizer.fit takes, in the order reports list them."""
