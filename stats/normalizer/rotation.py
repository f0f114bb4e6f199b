"""The rotation of PHI-S for every width.

Given the eigenvalues l of a covariance, find an orthogonal R such that diag(R diag(l) R^T) is
constant, so that after it every channel has the same variance. A Hadamard matrix does this for any
l (its squared entries are all 1/c). Where none is constructed, the discrete Hartley matrix, which
is orthogonal for every size, spreads, and at most c - 1 Givens rotations make the diagonal exactly
constant (Schur-Horn; Bendel and Mickey 1978, Chan and Li 1983). Nothing is random.

c width, l eigenvalues (c,), R rotation (c, c), A = R diag(l) R^T.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from phistill.errors import UsageError

from .hadamard import hadamard


def hartley(c: int) -> Float[np.ndarray, "c c"]:
    """The orthogonal, symmetric matrix cas(2 pi j k / c) / sqrt(c), cas = cos + sin."""
    index = np.arange(c)
    turns = np.outer(index, index) % c / c  # whole turns dropped, or the angle loses digits
    angle = 2 * np.pi * turns
    return (np.cos(angle) + np.sin(angle)) / np.sqrt(c)


def level_diagonal(
    start: Float[np.ndarray, "c c"], eigenvalues: Float[np.ndarray, " c"]
) -> Float[np.ndarray, "c c"]:
    """Rotate the rows of an orthogonal matrix until diag(R diag(l) R^T) is mean(l).

    Each step takes the largest and the smallest diagonal entry that are not yet settled and turns
    their plane so that the one nearer to the mean lands on it. The trace is kept, so the last
    entry settles by itself.
    """
    c = len(eigenvalues)
    scale = float(np.max(np.abs(eigenvalues), initial=0.0))
    if scale == 0.0:
        return start.copy()
    level = eigenvalues / scale
    target = float(np.mean(level))
    r = start.copy()
    a = (r * level) @ r.T
    deviation = np.diagonal(a) - target  # settled entries are set to 0 and never lead again
    for _ in range(c - 1):
        high, low = int(np.argmax(deviation)), int(np.argmin(deviation))
        if deviation[high] <= 0.0 or deviation[low] >= 0.0:
            break
        i, j = (high, low) if deviation[high] <= -deviation[low] else (low, high)
        # (1/cos^2) (A_ii' - target) = d_j t^2 - 2 A_ij t + d_i = 0, t = tan; the root of smaller
        # size, written so that nothing cancels. d_i and d_j differ in sign: it is real.
        root = np.sqrt(a[i, j] ** 2 - deviation[i] * deviation[j])
        t = deviation[i] / (a[i, j] + (root if a[i, j] >= 0 else -root))
        cosine = 1.0 / np.sqrt(1.0 + t * t)
        turn = cosine * np.array([[1.0, -t], [t, 1.0]])
        pair = [i, j]
        r[pair] = turn @ r[pair]
        a[pair] = turn @ a[pair]
        a[:, pair] = a[:, pair] @ turn.T
        deviation[i] = 0.0
        deviation[j] = a[j, j] - target
    return r


def fix_signs(r: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    """Negate the rows whose diagonal entry is negative (P, Fig. 4)."""
    return np.where(np.diagonal(r)[:, None] < 0, -r, r)


def rotation(eigenvalues: Float[np.ndarray, " c"]) -> tuple[Float[np.ndarray, "c c"], str]:
    """An orthogonal R with constant diag(R diag(l) R^T), float64, and how it was made.

    The second value is the Hadamard construction ("sylvester 64 x paley1 12"), or "hartley+givens".
    Raises UsageError for an empty or non-finite argument.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise UsageError(
            f"eigenvalues of shape {values.shape} must be a non-empty vector of finite numbers."
        )
    c = values.size
    found = hadamard(c)
    if found is not None:
        h, kind = found
        return fix_signs(h.astype(np.float64) / np.sqrt(c)), kind
    return fix_signs(level_diagonal(hartley(c), values)), "hartley+givens"
