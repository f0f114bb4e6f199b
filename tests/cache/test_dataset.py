"""A DataLoader of one's own gets the rows that the reader gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from phistill.cache import Cache
from phistill.cache.dataset import CacheDataset

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
