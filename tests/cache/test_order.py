"""An order is a pure function of seed and epoch, and every row comes exactly once."""

from __future__ import annotations

import numpy as np
import pytest

from phistill.cache.order import MODES, epoch_rows, label_entropy
from phistill.errors import UsageError

ROWS = np.setdiff1d(np.arange(5000), np.arange(0, 5000, 7)).astype(np.int64)


def visit(
    mode: str, *, seed: int = 0, epoch: int = 0, window: int = 4
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = epoch_rows(
        ROWS, seed=seed, epoch=epoch, mode=mode, shard_rows=64, window_shards=window
    )
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_row_comes_exactly_once(mode: str) -> None:
    np.testing.assert_array_equal(np.sort(visit(mode)), ROWS)


@pytest.mark.parametrize("mode", ["full", "block"])
def test_seed_and_epoch_decide_the_order_and_nothing_else(mode: str) -> None:
    np.testing.assert_array_equal(visit(mode), visit(mode))
    assert not np.array_equal(visit(mode), visit(mode, seed=1))
    assert not np.array_equal(visit(mode), visit(mode, epoch=1))


def test_a_block_order_keeps_few_shards_open() -> None:
    shards = visit("block", window=4) // 64
    last_seen = {shard: position for position, shard in enumerate(shards.tolist())}
    first_seen: dict[int, int] = {}
    for position, shard in enumerate(shards.tolist()):
        first_seen.setdefault(shard, position)
    for position in range(0, len(shards), 50):
        open_now = [s for s in first_seen if first_seen[s] <= position <= last_seen[s]]
        assert len(open_now) <= 4


def test_a_block_order_mixes_labels_that_are_in_random_order_already() -> None:
    """Rows of a cache are a random permutation; only then is block as good as full."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 5000)
    uniform = label_entropy(labels[visit("full")], 64)
    block = label_entropy(labels[visit("block")], 64)
    assert block == pytest.approx(uniform, rel=0.01)
    sorted_labels = np.sort(labels)
    assert label_entropy(sorted_labels[visit("block")], 64) < 0.8 * uniform


def test_an_unknown_order_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="choose one of full, block, none"):
        visit("random")
