"""Bytes from the cache to batches: moves data and never decides its order.

Rows that fit into the config's ``memory_bytes`` are read once and stay in memory; otherwise
threads read ahead into a ring of buffers. Either way a step's batch holds the same bytes.

b rows of this rank's share of a step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from phistill.cache import ArrayReader, Cache
from phistill.cache.joined import JoinedCaches, JoinedReadAhead, JoinedReader
from phistill.cache.order import WINDOW_SHARDS
from phistill.cache.readahead import ReadAhead
from phistill.errors import UsageError

from ..targets import Target
from .mixing import MixedPlan
from .sequence import RowPlan, Rows
from .to_device import Copier

PIXELS = "pixels"


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's share of a step, or a part of it."""

    step: int
    rows: Rows
    """(b,) global rows."""

    first: int
    """Position of ``rows[0]`` within the step's global batch."""

    pixels: UInt8[Tensor, "b S S 3"]
    values: Mapping[str, Tensor]
    """By target key: patches (n, T, C) float16 or summary (n, D) float32, as stored; n = b unless
    each row has one teacher."""

    teacher_of: NDArray[np.int64] | None
    """(b,) number of each row's only teacher; None when every teacher takes every row."""

    counts: Mapping[str, int]
    """By target key: rows of the whole global batch that have this target."""

    slots: Mapping[str, int]
    """By target key: the number of its teacher."""

    shared: dict[Any, Any] | None = None
    """What students that take turns on this batch have computed from it and the next may use; None
    where there is one student."""

    def positions(self, key: str) -> NDArray[np.int64]:
        """Rows of this batch that have the target ``key``."""
        if self.teacher_of is None:
            return np.arange(len(self.rows))
        return np.flatnonzero(self.teacher_of == self.slots[key])

    def part(self, number: int, parts: int) -> Batch:
        """Part ``number`` of ``parts`` equal ones."""
        size = len(self.rows) // parts
        low, high = number * size, (number + 1) * size
        values = {}
        for key, value in self.values.items():
            positions = self.positions(key)
            values[key] = value[np.searchsorted(positions, low) : np.searchsorted(positions, high)]
        return replace(
            self,
            rows=self.rows[low:high],
            first=self.first + low,
            pixels=self.pixels[low:high],
            values=values,
            teacher_of=None if self.teacher_of is None else self.teacher_of[low:high],
            shared=self.shared if parts == 1 else None,
        )


class Source:
    """The pixels and targets of chosen rows, from the cache's shards or from memory."""

    def __init__(self, cache: Cache | JoinedCaches, targets: Sequence[Target]) -> None:
        if PIXELS not in cache.owners:
            raise UsageError(
                f"{cache.location} stores no pixels for the student. Extract with a pixel size."
            )
        self.cache = cache
        self.readers: dict[str, ArrayReader | JoinedReader] = {PIXELS: cache.reader(PIXELS, PIXELS)}
        for target in targets:
            self.readers[target.key] = cache.reader(target.teacher, target.kind)
        self._resident: dict[str, NDArray[Any]] = {}
        self._resident_rows = np.empty(0, np.int64)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over everything that is read."""
        return sum(
            math.prod(reader.row_shape) * reader.dtype.itemsize for reader in self.readers.values()
        )

    @property
    def is_resident(self) -> bool:
        return bool(self._resident)

    def keep_in_memory(self, rows: Rows) -> None:
        """Read ``rows`` (ascending) once; later reads are copies within memory."""
        self._resident = {key: reader.read(rows) for key, reader in self.readers.items()}
        self._resident_rows = rows

    def read(self, key: str, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The stored values (n, ...) of ``rows``; into ``out`` when given."""
        if not rows.size:  # a share of a batch may hold no row of a teacher
            reader = self.readers[key]
            return np.empty((0, *reader.row_shape), reader.dtype) if out is None else out
        if not self._resident:
            return self.readers[key].read(rows, out)
        places = np.searchsorted(self._resident_rows, rows)
        return np.take(self._resident[key], places, axis=0, out=out, mode="clip")

    def shards_ahead(self) -> ReadAhead | JoinedReadAhead:
        """What asks for whole shards before their rows are read."""
        joined = [one for one in self.readers.values() if isinstance(one, JoinedReader)]
        if isinstance(self.cache, JoinedCaches):
            return JoinedReadAhead(self.cache, joined)
        single = [one for one in self.readers.values() if isinstance(one, ArrayReader)]
        return ReadAhead(single, shard_rows=self.cache.info.shard_rows)

    def buffers(self, num_rows: int, *, pinned: bool) -> dict[str, Tensor]:
        """Host memory for ``num_rows`` rows of everything."""
        return {
            key: torch.empty(
                (num_rows, *reader.row_shape),
                dtype=getattr(torch, reader.dtype.name),
                pin_memory=pinned,
            )
            for key, reader in self.readers.items()
        }


class Loader:
    """Batches of steps ``start`` to ``stop`` in order; iterate once, close when done.

    ``wait_s`` sums the time the consumer waited for data.
    """

    def __init__(
        self,
        source: Source,
        plan: RowPlan | MixedPlan,
        targets: Sequence[Target],
        *,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        read_ahead: int = 4,
        device: torch.device | None = None,
    ) -> None:
        self.source, self.plan, self.targets = source, plan, tuple(targets)
        self.device = device or torch.device("cpu")
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.slots = {t.key: plan.teachers.index(t.teacher) for t in targets}
        self.wait_s = 0.0
        self._depth = read_ahead if workers else 0
        self._copier = Copier(self.device)
        pinned = self.device.type == "cuda"
        size = plan.config.batch_size // world
        self._ring = [source.buffers(size, pinned=pinned) for _ in range(self._depth + 1)]
        self._pool = ThreadPoolExecutor(workers, "read-ahead") if workers else None
        self._shards_ahead = None
        if plan.config.order == "block" and not source.is_resident:
            self._shards_ahead = source.shards_ahead()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        if self._shards_ahead is not None:
            self._shards_ahead.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        """Batches on the device; a batch's tensors are valid until the next one is asked for."""
        return self._copier.deliver(self._on_host())

    def _on_host(self) -> Iterator[Batch]:
        pending: deque[Future[Batch]] = deque()
        self._expect(self.start)
        for step in range(self.start, min(self.stop, self.start + self._depth)):
            pending.append(self._submit(step))
        for step in range(self.start, self.stop):
            self._expect(step)
            begun = time.perf_counter()
            ready = pending.popleft().result() if pending else None
            self._copier.finish()  # from here on the buffers of the batch before may be written
            batch = ready or self.load(step)
            self.wait_s += time.perf_counter() - begun
            # Submitted before the consumer works on this batch: the ring has one slot more than
            # the depth, so the slot taken is the one of the batch before this.
            if self._depth and step + self._depth < self.stop:
                pending.append(self._submit(step + self._depth))
            yield batch

    def _expect(self, step: int) -> None:
        """In block order, have the shards of this window and the next brought nearer."""
        if self._shards_ahead is None:
            return
        window = WINDOW_SHARDS * self.plan.shard_rows // self.plan.config.batch_size
        for expected in (step, step + window):
            if expected < self.stop:
                self._shards_ahead.expect(self.plan.step(expected))

    def load(self, step: int) -> Batch:
        """Read one batch now."""
        everything = self.plan.step(step)
        size = len(everything) // self.world
        rows = everything[self.rank * size : (self.rank + 1) * size]
        slots = self.plan.teachers_of(everything)
        mine = None if slots is None else slots[self.rank * size : (self.rank + 1) * size]
        buffers = self._ring[step % len(self._ring)]
        values, counts = {}, {}
        self.source.read(PIXELS, rows, buffers[PIXELS].numpy())
        for target in self.targets:
            slot = self.slots[target.key]
            wanted = rows if mine is None else rows[mine == slot]
            counts[target.key] = len(everything) if slots is None else int((slots == slot).sum())
            values[target.key] = buffers[target.key][: len(wanted)]
            self.source.read(target.key, wanted, values[target.key].numpy())
        return Batch(
            step=step,
            rows=rows,
            first=self.rank * size,
            pixels=buffers[PIXELS],
            values=values,
            teacher_of=mine,
            counts=counts,
            slots=self.slots,
        )

    def _submit(self, step: int) -> Future[Batch]:
        assert self._pool is not None
        return self._pool.submit(self.load, step)
