"""A cache for ``torch.utils.data.DataLoader``, for Lightning, accelerate or a loop of one's own.

cache = phistill.open("my.cache")
batches = CacheBatches(cache, {"ssl": ["patches", "summary"]}, batch_size=128)
for epoch in range(20):
    batches.set_epoch(epoch)
    for batch in DataLoader(batches, batch_size=None, num_workers=2):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from phistill.errors import UsageError

from .format import names
from .order import EpochOrder
from .reader import RowReader
from .row_set import RowSet
from .store import Cache

Arrays = Mapping[str, Sequence[str]]
"""Kinds by teacher."""

Batch = dict[str, torch.Tensor]
"""``row`` (n,) int64, ``pixels`` (n, height, width, 3) uint8, and ``TEACHER/KIND`` (n, ...) in the
stored dtype: float16 patches and registers, float32 summaries. Codes are decoded to float32; who
asks for the kind ``patches-codes`` gets them as they are stored, uint8 (n, bytes)."""


class CacheDataset(Dataset[Batch]):
    """Rows of a cache as dictionaries of tensors (``Batch``), in any order that is asked for.

    ``arrays`` maps teachers to kinds; None takes everything. ``rows`` defaults to the training rows
    that every named teacher has. A DataLoader hands over a whole batch of indices at once
    (``__getitems__``), which is read with one call per array; give it ``collate_fn=collate``.
    ``unbiased`` decodes what is stored as codes for training, as ``Cache.reader`` does.
    Pickling sends only the path, so worker processes open the cache themselves.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Arrays | None = None,
        *,
        rows: NDArray[np.int64] | None = None,
        pixels: bool = True,
        unbiased: bool = False,
    ) -> None:
        self._rows = _RowReader(cache, arrays, pixels, unbiased)
        self.rows = self._rows.default if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        """One row, without a batch dimension."""
        return {key: value[0] for key, value in self.read([position]).items()}

    def __getitems__(self, positions: list[int]) -> Batch:
        """A batch, already collated; ``collate`` passes it on."""
        return self.read(positions)

    def read(self, positions: Sequence[int]) -> Batch:
        """The rows at ``positions`` (n,) of ``rows``."""
        return self._rows.read(self.rows[np.asarray(positions, np.int64)])

    @staticmethod
    def collate(batch: Batch | Sequence[Batch]) -> Batch:
        """A batch as it was read, or single rows stacked to one: whatever a loader collects."""
        if isinstance(batch, Mapping):
            return dict(batch)
        return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


class CacheBatches(IterableDataset[Batch]):
    """Whole batches in the order of an epoch: the order that ``phistill train`` takes rows in.

    For a DataLoader with ``batch_size=None``. ``batch_size`` rows are one rank's; of ``world``
    ranks each takes its own part of every step, and a last step without ``batch_size`` rows for
    each is left out (``drop_last=False`` keeps it on a single rank). Worker processes take turns
    with the steps, which a DataLoader gives out in order again. ``order`` is ``full``, ``block`` or
    ``none`` (``phistill.cache.order``); the same seed and epoch give the same rows on any number of
    workers. UsageError when there is not one step.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Arrays | None = None,
        *,
        batch_size: int,
        rows: NDArray[np.int64] | None = None,
        pixels: bool = True,
        unbiased: bool = False,
        order: str = "full",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise UsageError(
                f"batch_size={batch_size} must be at least 1, and rank={rank} one of the "
                f"world={world} ranks."
            )
        if world > 1 and not drop_last:
            raise UsageError(f"drop_last=False: world={world} ranks take the same number of steps.")
        self._rows = _RowReader(cache, arrays, pixels, unbiased)
        self._order = EpochOrder(
            rows=RowSet(self._rows.default if rows is None else np.unique(rows)),
            seed=seed,
            epoch=0,
            mode=order,
            block_rows=cache.block_rows(self._rows.teachers),
        )
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._drop_last = drop_last
        if not len(self):
            raise UsageError(
                f"{len(self._order.rows)} rows do not fill a batch of {batch_size} x {world} ranks."
            )

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop over it is; call it before the loader starts its workers."""
        self._order = EpochOrder(
            rows=self._order.rows,
            seed=self._order.seed,
            epoch=epoch,
            mode=self._order.mode,
            block_rows=self._order.block_rows,
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        step = self._batch_size * self._world
        full, rest = divmod(len(self._order.rows), step)
        return full + (not self._drop_last and rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(first, len(self), stride):
            start = (step * self._world + self._rank) * self._batch_size
            stop = min(start + self._batch_size, len(self._order.rows))
            yield self._rows.read(self._order.between(start, stop))


class _RowReader:
    """The arrays of a cache that are asked for, opened in the process that reads."""

    def __init__(self, cache: Cache, arrays: Arrays | None, pixels: bool, unbiased: bool) -> None:
        if arrays is None:
            arrays = {name: cache.teacher(name).kinds for name in cache.teachers}
        self._cache, self._unbiased = cache, unbiased
        self._arrays = [(name, kind) for name, kinds in arrays.items() for kind in kinds]
        if pixels and cache.info.pixel_size:
            self._arrays.insert(0, (names.PIXELS, names.PIXELS))
        self.teachers = list(arrays)
        self._readers: dict[tuple[str, str], RowReader] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": None}

    @property
    def default(self) -> NDArray[np.int64]:
        """The training rows (n,) that every named teacher has."""
        return self._cache.rows(self.teachers)

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """Rows (n,) with one call for each array."""
        if self._readers is None:
            self._readers = {
                key: self._cache.reader(*key, unbiased=self._unbiased) for key in self._arrays
            }
        batch = {"row": torch.from_numpy(rows)}
        for (owner, kind), reader in self._readers.items():
            key = owner if owner == names.PIXELS else f"{owner}/{kind}"
            batch[key] = torch.from_numpy(reader.read(rows))
        return batch
