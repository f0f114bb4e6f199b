"""How a cost grows: an exponent and a line through measurements, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Growth(NamedTuple):
    """Fitted to costs at several sizes, relative errors weighing alike."""

    exponent: float
    exponent_error: float
    """Standard errors; nan where there are only two sizes."""
    at: float
    at_error: float
    """The line a + b n at the size asked for."""


def growth(sizes: Sequence[float], costs: Sequence[float], at: float) -> Growth:
    """n^p by least squares of logarithms, and a + b n by least squares of relative errors."""
    n, y = np.asarray(sizes, float), np.asarray(costs, float)
    powers, _, power_errors = _least_squares(np.log(n), np.log(y), np.ones_like(n), 1.0)
    line, at_error, _ = _least_squares(n, y, 1 / y, at)
    return Growth(powers[1], power_errors, float(line[0] + line[1] * at), at_error)


def _least_squares(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, at: float
) -> tuple[np.ndarray, float, float]:
    """(a, b) of a + b x, the standard error of the value at ``at``, and that of b."""
    matrix = np.stack([np.ones_like(x), x], axis=1) * weights[:, None]
    scale = np.abs(matrix).max(axis=0)  # sizes differ by millions
    solution, *_ = np.linalg.lstsq(matrix / scale, y * weights, rcond=None)
    freedom = len(x) - 2
    if freedom < 1:
        return solution / scale, math.nan, math.nan
    left = y * weights - matrix / scale @ solution
    covariance = np.linalg.pinv((matrix / scale).T @ (matrix / scale)) * (left @ left / freedom)
    place = np.array([1.0, at]) / scale
    return (
        solution / scale,
        float(np.sqrt(place @ covariance @ place)),
        float(np.sqrt(covariance[1, 1]) / scale[1]),
    )
