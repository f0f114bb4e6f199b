"""A ``torch.utils.data.Dataset`` over a cache, for Lightning or a loop of one's own.

dataset = CacheDataset(phistill.cache.open("my.cache"), {"ssl": ["patches", "summary"]})
loader = DataLoader(dataset, batch_size=128, shuffle=True, collate_fn=dataset.collate)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .format import names
from .reader import ArrayReader
from .store import Cache

Batch = dict[str, torch.Tensor]


class CacheDataset(Dataset[Batch]):
    """Rows of a cache as dictionaries of tensors: ``row``, ``pixels``, and ``TEACHER/KIND``.

    ``arrays`` maps teachers to kinds; None takes everything. ``rows`` defaults to the training rows
    that every named teacher has. A DataLoader hands over a whole batch of indices at once
    (``__getitems__``), which is read with one call per array; give it ``collate_fn=collate``.
    Pickling sends only the path, so worker processes open the cache themselves.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Mapping[str, Sequence[str]] | None = None,
        *,
        rows: NDArray[np.int64] | None = None,
        pixels: bool = True,
    ) -> None:
        if arrays is None:
            arrays = {name: cache.teacher(name).kinds for name in cache.teachers}
        self._cache = cache
        self._arrays = [(name, kind) for name, kinds in arrays.items() for kind in kinds]
        if pixels and cache.info.pixel_size:
            self._arrays.insert(0, (names.PIXELS, names.PIXELS))
        self.rows = cache.rows(list(arrays)) if rows is None else np.asarray(rows, np.int64)
        self._readers: dict[tuple[str, str], ArrayReader] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        """One row, without a batch dimension."""
        return {key: value[0] for key, value in self.read([position]).items()}

    def __getitems__(self, positions: list[int]) -> Batch:
        """A batch, already collated; ``collate`` passes it on."""
        return self.read(positions)

    def read(self, positions: Sequence[int]) -> Batch:
        """The rows at ``positions`` (n,) of ``rows``: tensors (n, ...) in the stored dtypes."""
        rows = self.rows[np.asarray(positions, np.int64)]
        if self._readers is None:
            self._readers = {key: self._cache.reader(*key) for key in self._arrays}
        batch = {"row": torch.from_numpy(rows)}
        for (owner, kind), reader in self._readers.items():
            key = owner if owner == names.PIXELS else f"{owner}/{kind}"
            batch[key] = torch.from_numpy(reader.read(rows))
        return batch

    @staticmethod
    def collate(batch: Any) -> Batch:
        """The batch as it was read."""
        rows: Batch = batch
        return rows
