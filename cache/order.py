"""The order in which rows are visited: pure functions that touch no data.

An order depends on (seed, epoch) and the rows alone. Workers and ranks take their share of the one
global sequence, so their number never changes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

MODES = ("full", "block", "none")
WINDOW_SHARDS = 16
"""Shards that ``block`` holds open at a time."""


def epoch_rows(
    rows: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    mode: str = "full",
    shard_rows: int = 0,
    window_shards: int = WINDOW_SHARDS,
    stream: int = 0,
) -> NDArray[np.int64]:
    """The rows (n,) of one epoch in the order they are visited.

    ``full`` is a uniform permutation drawn from (seed, epoch). ``block`` permutes the shards, takes
    ``window_shards`` of them at a time and permutes the rows of each window: a disk or an object
    store is read in whole shards, and since a cache's rows are in random order already, a batch is
    nearly as mixed. ``none`` keeps the given order. ``block`` needs the cache's ``shard_rows``.
    ``stream`` numbers the caches of one run: equal rows in two of them come in unrelated orders.
    """
    entropy = [seed, epoch, stream] if stream else [seed, epoch]
    generator = np.random.Generator(np.random.PCG64(entropy))
    if mode == "none":
        return rows.copy()
    if mode == "full":
        return rows[generator.permutation(rows.size)]
    if mode != "block":
        raise UsageError(f"order={mode!r} is not known; choose one of {', '.join(MODES)}.")
    if shard_rows < 1 or window_shards < 1:
        raise UsageError(
            f"order=block needs shard_rows={shard_rows} and window_shards={window_shards} "
            "above 0; take shard_rows from Cache.info."
        )
    shards, shard_of = np.unique(rows // shard_rows, return_inverse=True)
    window = (generator.permutation(shards.size) // window_shards)[shard_of]
    mixed = generator.permutation(rows.size)
    return rows[mixed[np.argsort(window[mixed], kind="stable")]]


def label_entropy(labels: NDArray[np.int64], batch_size: int) -> float:
    """Mean entropy (nats) of the labels in consecutive batches: how well an order mixes.

    ``labels`` (n,) are the classes in visiting order; compare with the same figure for ``full``.
    """
    num = labels.size // batch_size
    if num == 0:
        raise UsageError(f"{labels.size} labels do not fill one batch of {batch_size}.")
    entropies = []
    for batch in labels[: num * batch_size].reshape(num, batch_size):
        share = np.unique(batch, return_counts=True)[1] / batch_size
        entropies.append(-float(np.sum(share * np.log(share))))
    return float(np.mean(entropies))
