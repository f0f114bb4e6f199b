"""Batches in the order of the plan: read ahead by threads into a ring of reused buffers.

A step's batch holds the same bytes however it is read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from phistill.cache.order import WINDOW_BLOCKS

from ..targets import Target
from .batch import Batch, share
from .plan import RowPlan
from .source import PIXELS, Source
from .to_device import Copier


class Loader:
    """Batches of steps ``start`` to ``stop`` in order; iterate once, close when done.

    ``wait_s`` sums the time the consumer waited for data.
    """

    def __init__(
        self,
        source: Source,
        plan: RowPlan,
        targets: Iterable[Target],
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
        self.slots = {t.key: plan.teachers.index(t.teacher) for t in self.targets}
        self.wait_s = 0.0
        self._depth = read_ahead if workers else 0
        self._copier = Copier(self.device)
        largest = -(-plan.config.batch_size // world)
        self._ring = [source.buffers(largest, self.device) for _ in range(self._depth + 1)]
        self._pool = ThreadPoolExecutor(workers, "read-ahead") if workers else None
        self._blocks_ahead = None
        if plan.config.order == "block" and not source.is_resident:
            self._blocks_ahead = source.blocks_ahead([stream.block_rows for stream in plan.streams])

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        if self._blocks_ahead is not None:
            self._blocks_ahead.close()
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
        """In block order, have the blocks of this window and the next brought nearer."""
        if self._blocks_ahead is None:
            return
        window = WINDOW_BLOCKS * self.plan.block_rows // self.plan.config.batch_size
        for expected in (step, step + window):
            if expected < self.stop:
                self._blocks_ahead.expect(self.plan.step(expected))

    def load(self, step: int) -> Batch:
        """Read one batch now."""
        everything = self.plan.step(step)
        low, high = share(len(everything), self.rank, self.world)
        rows, slots = everything[low:high], self.plan.teachers_of(everything)
        mine = None if slots is None else slots[low:high]
        buffers = self._ring[step % len(self._ring)]
        values, counts = {}, {}
        pixels = buffers[PIXELS][: len(rows)]
        self.source.read(PIXELS, rows, pixels.numpy())
        for target in self.targets:
            slot = self.slots[target.key]
            wanted = rows if mine is None else rows[mine == slot]
            counts[target.key] = len(everything) if slots is None else int((slots == slot).sum())
            values[target.key] = buffers[target.key][: len(wanted)]
            self.source.read(target.key, wanted, values[target.key].numpy())
        return Batch(
            step=step,
            rows=rows,
            first=low,
            pixels=pixels,
            values=values,
            teacher_of=mine,
            counts=counts,
            slots=self.slots,
            normalised=self.source.normalised,
            codecs=self.source.codecs,
        )

    def _submit(self, step: int) -> Future[Batch]:
        assert self._pool is not None
        return self._pool.submit(self.load, step)
