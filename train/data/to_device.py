"""Batches on the training device: copied one ahead on a side stream where it is a CUDA device.

While the student works on a batch, the next one travels. The host buffers are pinned, so the copy
runs beside kernels and beside Python; two events' worth of order is all that is needed:

* the student's stream waits for the copy of the batch it is handed (``wait_event``), and the
  allocator is told that this stream uses tensors of the side stream (``record_stream``);
* a host buffer is written again only after its copy has ended (``Copier.finish``).

On any other device a batch is handed over as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from .batch import Batch


class Copier:
    """Copies of host batches to one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: Any = None

    def deliver(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, in order, on the device."""
        if self._side is None:
            return (self._moved(batch) for batch in batches)
        return one_ahead(batches, send=self._send, take=self._take)

    def finish(self) -> None:
        """Wait until every copy begun so far has left the host's buffers."""
        if self._last is not None:
            self._last.synchronize()

    def _moved(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return replace(
            batch,
            pixels=batch.pixels.to(self.device, non_blocking=True),
            values={k: v.to(self.device, non_blocking=True) for k, v in batch.values.items()},
        )

    def _send(self, batch: Batch) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._side):
            moved = self._moved(batch)
            self._last = torch.cuda.Event()
            self._last.record(self._side)
        return moved, self._last

    def _take(self, sent: tuple[Batch, Any]) -> Batch:
        batch, copied = sent
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in (batch.pixels, *batch.values.values()):
            tensor.record_stream(stream)
        return batch


def one_ahead(
    batches: Iterable[Batch], *, send: Callable[[Batch], Any], take: Callable[[Any], Batch]
) -> Iterator[Batch]:
    """``take(send(batch))`` of each, in order, where a batch is sent before the one before it is
    handed out."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(send(batch))
        if len(waiting) > 1:
            yield take(waiting.pop(0))
    for sent in waiting:
        yield take(sent)
