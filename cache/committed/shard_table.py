"""What is known of many shards, as columns by ascending shard.

k shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class ShardTable:
    """Columns by name, two of which every table has; each is read when it is first asked for."""

    def __init__(self, columns: Arrays) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def shards(self) -> Int64[np.ndarray, " k"]:
        """Which shard each is of."""
        return self.columns["shards"]

    @property
    def digests(self) -> UInt8[np.ndarray, "k 32"]:
        """Of what is known of each shard."""
        return self.columns["digests"]
