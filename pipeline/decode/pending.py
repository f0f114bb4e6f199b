"""A shard whose images are still being decoded: rows can be used as soon as they are there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .image import DecodedImage
from .views import Box, Rendering


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What the index says of a shard's rows, in order."""

    shard: int
    uris: Sequence[str]
    offsets: Sequence[int]
    lengths: Sequence[int]
    views: Sequence[int]
    ids: Sequence[str] | None = None
    """Needed by random views."""


@dataclass(frozen=True, slots=True)
class DecodedShard:
    """A shard's rows rendered for every input that is needed; rejected rows are black."""

    shard: int
    pixels: dict[Rendering, NDArray[np.uint8]]
    sha256: Sequence[str | None]
    """Of each row's encoded bytes."""
    size: Sequence[tuple[int, int] | None]
    """(width, height) of each row's upright image; None when it was rejected, as ``box``."""
    box: Sequence[Box | None]
    reasons: dict[int, str]


class PendingShard:
    """A shard that fills as its images are decoded, from several threads."""

    def __init__(self, job: ShardRows, renderings: Sequence[Rendering]) -> None:
        self.shard, self.num_rows = job.shard, len(job.uris)
        self._renderings = tuple(renderings)
        # Zeros that the system hands out when they are written.
        self._pixels = {r: np.zeros((self.num_rows, *r.size, 3), np.uint8) for r in renderings}
        self._sha256: list[str | None] = [None] * self.num_rows
        self._size: list[tuple[int, int] | None] = [None] * self.num_rows
        self._box: list[Box | None] = [None] * self.num_rows
        self._reasons: dict[int, str] = {}
        self._expected: list[tuple[int, Future[None]]] = []

    def expect(self, start: int, done: Future[None]) -> None:
        """Rows from ``start`` on, up to the next that is expected, are there when ``done`` is."""
        self._expected.append((start, done))

    def place(self, rows: range, image: DecodedImage) -> None:
        """Put an image's views into its rows."""
        for number, row in enumerate(rows):
            self._sha256[row], self._size[row] = image.sha256, image.size
            if image.reason is not None:
                self._reasons[row] = image.reason
                continue
            self._box[row] = image.boxes[number]
            for rendering, values in zip(self._renderings, image.pixels[number], strict=True):
                self._pixels[rendering][row] = values

    def rows(self, rendering: Rendering, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) as uint8 (n, h, w, 3), when they are there; raises what reading
        raised."""
        for first, done in self._expected:
            if first < stop:
                done.result()
        return self._pixels[rendering][start:stop]

    def complete(self) -> DecodedShard:
        """The whole shard, when it is there."""
        for _, done in self._expected:
            done.result()
        reasons = dict(sorted(self._reasons.items()))
        return DecodedShard(self.shard, self._pixels, self._sha256, self._size, self._box, reasons)
