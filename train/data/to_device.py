"""Batches on the training device: on a CUDA device the next one travels while the student works.

The host buffers are pinned, so the copy runs beside kernels and beside Python, and one is written
again only after its copy has ended (``Copier.finish``). On any other device a batch is handed over
as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from phistill.compute.copies import Sent, ToDevice

from .batch import Batch


class Copier:
    """Copies of host batches to one device."""

    def __init__(self, device: torch.device) -> None:
        self._copies = ToDevice(device)

    def deliver(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, in order, on the device."""
        if self._copies.device.type != "cuda":
            return (self._take(self._send(batch)) for batch in batches)
        return one_ahead(batches, send=self._send, take=self._take)

    def finish(self) -> None:
        """Wait until every copy begun so far has left the host's buffers."""
        self._copies.finish()

    def _send(self, batch: Batch) -> tuple[Batch, Sent]:
        return batch, self._copies.send([batch.pixels, *batch.values.values()])

    def _take(self, sent: tuple[Batch, Sent]) -> Batch:
        batch, copies = sent
        pixels, *values = copies.take()
        return replace(batch, pixels=pixels, values=dict(zip(batch.values, values, strict=True)))


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
