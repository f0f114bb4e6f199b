"""An order is a pure function of seed and epoch, and every row comes exactly once."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from phistill.cache.order import MODES, EpochOrder, Permutation, label_entropy
from phistill.cache.row_set import RowSet
from phistill.errors import UsageError

ROWS = np.setdiff1d(np.arange(5000), np.arange(0, 5000, 7)).astype(np.int64)


def visit(mode: str, *, seed: int = 0, epoch: int = 0, window: int = 4) -> NDArray[np.int64]:
    order = EpochOrder(
        rows=RowSet(ROWS), seed=seed, epoch=epoch, mode=mode, block_rows=64, window_blocks=window
    )
    return order.between(0, len(ROWS))


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


def test_every_key_gives_a_permutation_of_every_size() -> None:
    for n in [*range(1, 2500), 4095, 4096, 4097, 65_537, 1_000_003]:
        there = Permutation(n, b"key")(np.arange(n))
        assert np.array_equal(np.sort(there), np.arange(n)), n


def chi_square(counts: NDArray[np.int64]) -> float:
    """How many standard deviations above its mean the chi-square of equal chances lies."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_of_a_few_are_equally_likely(n: int) -> None:
    numbers = {p: i for i, p in enumerate(itertools.permutations(range(n)))}
    drawn = [
        numbers[tuple(Permutation(n, str(key).encode())(np.arange(n)).tolist())]
        for key in range(100 * len(numbers))
    ]
    assert chi_square(np.bincount(drawn, minlength=len(numbers))) < 5
    half = Permutation(n, b"")  # the test sees a network of too few rounds
    half._keys = half._keys[:4]
    drawn = []
    for key in range(100 * len(numbers)):
        half._keys = Permutation(n, str(key).encode())._keys[:4]
        drawn.append(numbers[tuple(half(np.arange(n)).tolist())])
    assert n < 5 or chi_square(np.bincount(drawn, minlength=len(numbers))) > 50


@pytest.mark.parametrize("n", [60, 5000])
def test_each_position_and_each_pair_of_neighbours_goes_everywhere_alike(n: int) -> None:
    """Cells of 20 x 20 for the place of one position, and for the places of two."""
    keys = 4000
    there = np.array([Permutation(n, b"%d" % key)(np.arange(3)) for key in range(keys)]) * 20 // n
    assert abs(chi_square(np.bincount(there[:, 0], minlength=20))) < 5
    for second in (1, 2):
        pairs = np.bincount(there[:, 0] * 20 + there[:, second], minlength=400)
        assert abs(chi_square(pairs)) < 5


@pytest.mark.parametrize("n", [1000, 100_000])
def test_one_permutation_shows_no_trend(n: int) -> None:
    """Neighbours are not sent near each other, and the start not to the start."""
    there = Permutation(n, b"trend")(np.arange(n)) / n
    assert abs(np.corrcoef(there[:-1], there[1:])[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), there)[0, 1]) < 5 / math.sqrt(n)
    cells = (there[:-1] * 10).astype(int) * 10 + (there[1:] * 10).astype(int)
    assert abs(chi_square(np.bincount(cells, minlength=100))) < 5


GOLDEN = {
    10: [6, 0, 9, 7, 2, 4, 3, 1, 5, 8],
    10**6: [540894, 848362, 415799, 462685, 609686, 402336, 90431, 549235, 379510, 324462],
    10**11: [
        51830618187,
        57531588367,
        8791013867,
        39480447546,
        9437150736,
        58417292244,
        89260437643,
        78818148564,
        74894072074,
        62432778681,
    ],
}


@pytest.mark.parametrize("n", GOLDEN)
def test_permutations_are_those_of_every_other_platform(n: int) -> None:
    """Written down once; a change would send every run that is resumed elsewhere."""
    assert Permutation(n, b"golden")(np.arange(min(n, 10))).tolist() == GOLDEN[n]


def test_another_process_computes_the_same_order() -> None:
    code = (
        "import numpy as np; from phistill.cache.order import EpochOrder;"
        "from phistill.cache.row_set import RowSet;"
        "o = EpochOrder(rows=RowSet(np.arange(10**5)), seed=3, epoch=7, mode='block',"
        " block_rows=64); print(o.between(70_000, 70_010).tolist())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    order = EpochOrder(rows=RowSet(np.arange(10**5)), seed=3, epoch=7, mode="block", block_rows=64)
    assert shown.stdout.strip() == str(order.between(70_000, 70_010).tolist())


@pytest.mark.parametrize("mode", MODES)
def test_a_row_depends_on_its_position_alone(mode: str) -> None:
    """Whatever was asked for before, and with what: a run goes on in the middle of an epoch."""
    whole = visit(mode)
    order = EpochOrder(
        rows=RowSet(ROWS), seed=0, epoch=0, mode=mode, block_rows=64, window_blocks=4
    )
    positions = np.random.default_rng(0).permutation(len(ROWS))
    for some in np.array_split(positions, 37):
        np.testing.assert_array_equal(order(some), whole[some])


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_costs_no_memory_of_an_epoch(mode: str) -> None:
    rows = RowSet(np.arange(3_000_000))
    EpochOrder(rows=rows, seed=0, epoch=0, mode=mode, block_rows=256).between(0, 64)
    tracemalloc.start()
    order = EpochOrder(rows=rows, seed=0, epoch=1, mode=mode, block_rows=256)
    order.between(1_000_000, 1_000_064)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000, "a byte a row"


def test_streams_of_one_run_come_in_unrelated_orders() -> None:
    first, second = (
        EpochOrder(rows=RowSet(ROWS), seed=0, epoch=0, stream=stream).between(0, len(ROWS))
        for stream in (0, 1)
    )
    assert np.count_nonzero(first == second) < 10
