"""What is known of many shards, as columns by ascending shard.

k shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from ..format.columns import Columns

Arrays = Mapping[str, NDArray[Any]]


class ShardTable:
    """Columns by name, two of which every table has; each is read when it is first asked for."""

    def __init__(self, columns: Arrays, content: Columns | None = None) -> None:
        """``content`` is the pack that the columns are of, where they are of one."""
        self.columns, self.content = columns, content

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

    def require_digest(self, place: int, digest: str) -> None:
        """CorruptCache unless what is known of the shard at ``place`` has the ``digest`` (hex)."""
        if digest != self.digests[place].tobytes().hex():
            what = f"what it says of shard {int(self.shards[place])} does not match its digest"
            raise self.content.damaged(what) if self.content else CorruptCache(what)
