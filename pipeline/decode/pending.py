"""Rows of a shard whose images are still being decoded: they can be used as soon as they are there.

A shard comes in parts, because its pixels together may be more than a process should hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .image import DecodedImage
from .views import Box, Rendering


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What the index says of rows of a shard, in order."""

    shard: int
    uris: Sequence[str]
    offsets: Sequence[int]
    lengths: Sequence[int]
    views: Sequence[int]
    ids: Sequence[str] | None = None
    """Needed by random views."""
    first: int = 0
    """Place in the shard of the first of these rows."""


@dataclass(slots=True)
class SeenImages:
    """What was learnt of each of n images, beside its pixels; filled as they are decoded."""

    sha256: list[str | None]
    """Of each row's encoded bytes."""
    size: list[tuple[int, int] | None]
    """(width, height) of each row's upright image; None when it was rejected, as ``box``."""
    box: list[Box | None]
    reasons: dict[int, str]
    """Why a row was rejected, by its place among the n."""

    @classmethod
    def none_of(cls, num_rows: int) -> Self:
        return cls([None] * num_rows, [None] * num_rows, [None] * num_rows, {})


@dataclass(frozen=True, slots=True)
class DecodedShard:
    """Rows of a shard rendered for every input that is needed; rejected rows are black."""

    shard: int
    first: int
    pixels: dict[Rendering, NDArray[np.uint8]]
    sha256: Sequence[str | None]
    size: Sequence[tuple[int, int] | None]
    box: Sequence[Box | None]
    reasons: dict[int, str]
    """As in SeenImages."""


class PendingShard:
    """Rows of a shard that are filled as their images are decoded, from several threads."""

    def __init__(self, job: ShardRows, renderings: Sequence[Rendering]) -> None:
        self.shard, self.num_rows = job.shard, len(job.uris)
        self.first, self.stop = job.first, job.first + self.num_rows
        self.seen = SeenImages.none_of(self.num_rows)
        self._renderings = tuple(renderings)
        # Zeros that the system hands out when they are written.
        self._pixels = {r: np.zeros((self.num_rows, *r.size, 3), np.uint8) for r in renderings}
        self._expected: list[tuple[int, Future[None]]] = []

    def expect(self, start: int, done: Future[None]) -> None:
        """Rows from ``start`` on, up to the next that is expected, are there when ``done`` is."""
        self._expected.append((start, done))

    def place(self, rows: range, image: DecodedImage) -> None:
        """Put an image's views into its rows."""
        for number, row in enumerate(rows):
            self.seen.sha256[row], self.seen.size[row] = image.sha256, image.size
            if image.reason is not None:
                self.seen.reasons[row] = image.reason
                continue
            self.seen.box[row] = image.boxes[number]
            for rendering, values in zip(self._renderings, image.pixels[number], strict=True):
                self._pixels[rendering][row] = values

    def rows(self, rendering: Rendering, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) of the shard as uint8 (n, h, w, 3), when they are there; raises what
        reading raised."""
        start, stop = start - self.first, stop - self.first
        for first, done in self._expected:
            if first < stop:
                done.result()
        return self._pixels[rendering][start:stop]

    def complete(self) -> DecodedShard:
        """All of the rows, when they are there."""
        for _, done in self._expected:
            done.result()
        seen = self.seen
        reasons = dict(sorted(seen.reasons.items()))
        return DecodedShard(
            self.shard, self.first, self._pixels, seen.sha256, seen.size, seen.box, reasons
        )
