"""A DataLoader of one's own gets the rows that the reader gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from phistill.cache import Cache
from phistill.cache.dataset import CacheBatches, CacheDataset
from phistill.cache.order import EpochOrder
from phistill.cache.row_set import RowSet
from phistill.errors import UsageError

CacheFactory = Callable[..., Cache]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_every_training_row_once_with_its_features(
    make_cache: CacheFactory, num_workers: int
) -> None:
    cache = make_cache(num_rows=50, rejects=[4])
    dataset = CacheDataset(cache, {"a": ["patches", "summary"]})
    loader = DataLoader(
        dataset, batch_size=8, shuffle=True, num_workers=num_workers, collate_fn=dataset.collate
    )
    rows = []
    for batch in loader:
        rows.append(batch["row"])
        expected = cache.reader("a", "patches").read(batch["row"].numpy())
        assert torch.equal(batch["a/patches"], torch.from_numpy(expected))
        assert batch["pixels"].shape[1:] == (8, 8, 3)
        assert set(batch) == {"row", "pixels", "a/patches", "a/summary"}
    np.testing.assert_array_equal(np.sort(torch.cat(rows).numpy()), cache.rows(["a"]))


def test_one_item_has_no_batch_dimension(make_cache: CacheFactory) -> None:
    item = CacheDataset(make_cache())[3]
    assert item["a/patches"].shape == (4, 12)


def test_single_rows_and_whole_batches_collate_to_the_same(make_cache: CacheFactory) -> None:
    dataset = CacheDataset(make_cache())
    at_once, one_by_one = dataset.read([2, 0, 5]), [dataset[2], dataset[0], dataset[5]]
    stacked = dataset.collate(one_by_one)
    assert stacked.keys() == dataset.collate(at_once).keys()
    assert all(torch.equal(stacked[key], at_once[key]) for key in at_once)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_come_in_the_order_of_the_epoch_whatever_the_workers(
    make_cache: CacheFactory, num_workers: int
) -> None:
    cache = make_cache(num_rows=50, rejects=[4])
    batches = CacheBatches(cache, {"a": ["patches"]}, batch_size=8, seed=3, drop_last=False)
    rows = RowSet(cache.rows(["a"]))
    seen = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        loader = DataLoader(batches, batch_size=None, num_workers=num_workers)
        epoch_rows = torch.cat([batch["row"] for batch in loader]).numpy()
        order = EpochOrder(rows=rows, seed=3, epoch=epoch)
        np.testing.assert_array_equal(epoch_rows, order.between(0, len(rows)))
        seen.append(epoch_rows)
    assert not np.array_equal(seen[0], seen[1])


def test_ranks_share_each_step_and_leave_out_what_does_not_fill_one(
    make_cache: CacheFactory,
) -> None:
    cache = make_cache(num_rows=50)
    ranks = [CacheBatches(cache, {}, batch_size=4, rank=r, world=3) for r in range(3)]
    parts = [[batch["row"] for batch in rank] for rank in ranks]
    rows = RowSet(cache.rows([]))
    num_steps = len(rows) // 12
    assert [len(part) for part in parts] == [len(rank) for rank in ranks] == [num_steps] * 3
    together = torch.cat([part[step] for step in range(num_steps) for part in parts]).numpy()
    expected = EpochOrder(rows=rows, seed=0, epoch=0).between(0, 12 * num_steps)
    np.testing.assert_array_equal(together, expected)


def test_batches_that_cannot_be_are_refused_with_the_numbers(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=50)
    with pytest.raises(UsageError, match="rows do not fill a batch of 40 x 2 ranks"):
        CacheBatches(cache, batch_size=40, world=2)
    with pytest.raises(UsageError, match="world=2 ranks take the same number"):
        CacheBatches(cache, batch_size=4, world=2, drop_last=False)
    with pytest.raises(UsageError, match="rank=2 one of the world=2"):
        CacheBatches(cache, batch_size=4, rank=2, world=2)


def test_a_seed_that_no_order_has_is_refused_by_name(make_cache: CacheFactory) -> None:
    with pytest.raises(UsageError, match="seed=-1 must be between 0"):
        CacheBatches(make_cache(), batch_size=4, seed=-1)
