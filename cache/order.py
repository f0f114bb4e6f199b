"""The order in which rows are visited: pure functions that touch no data.

An order depends on (seed, epoch) and the rows alone. Workers and ranks take their share of the one
global sequence, so their number never changes it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

Shuffle = Literal["full", "none"]


def epoch_rows(
    rows: NDArray[np.int64], *, seed: int, epoch: int, mode: Shuffle = "full"
) -> NDArray[np.int64]:
    """The rows (n,) of one epoch in the order they are visited.

    ``full`` is a uniform permutation drawn from (seed, epoch); ``none`` keeps the given order.
    """
    if mode == "none":
        return rows.copy()
    if mode == "full":
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        return rows[generator.permutation(rows.size)]
    raise UsageError(f"shuffle={mode!r} is not known; choose one of full, none.")
