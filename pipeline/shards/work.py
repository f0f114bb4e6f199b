"""Rows of one shard from pixels to full files: parts of images come, batches go to the teachers,
what they give goes to the writers. No more of a shard is held than is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from phistill.cache import ImageFacts
from phistill.cache.shard_writer import ShardWriter

from ..decode.pending import PendingShard, SeenImages

if TYPE_CHECKING:
    from phistill.compute.copies import Sent
    from phistill.stats.fit.kept_sums import ShardSums

    from ..teachers.runner import TeacherRunner


class Unit:
    """A shard in work: what is known of the images of the parts that came so far."""

    def __init__(self, shard: int, num_rows: int) -> None:
        self.shard, self.num_rows = shard, num_rows
        self.parts: list[tuple[int, SeenImages]] = []
        """(first row in the shard, images), in order."""

    def rejected(self, start: int, stop: int) -> list[int]:
        """Of the decoded rows [start, stop) those whose image was rejected, counted from start."""
        return [
            first + slot - start
            for first, seen in self.parts
            if first < stop and first + len(seen.sha256) > start
            for slot in seen.reasons.copy()
            if start <= first + slot < stop
        ]

    def sha256(self, start: int, stop: int) -> list[str | None]:
        """Hashes of the images of the decoded rows [start, stop)."""
        return [
            one
            for first, seen in self.parts
            if first < stop and first + len(seen.sha256) > start
            for one in seen.sha256[max(start - first, 0) : stop - first]
        ]

    def images(self) -> tuple[ImageFacts, dict[int, str]]:
        """What all images are, once they are decoded, and why rows were rejected."""
        every = [seen for _, seen in self.parts]
        facts = ImageFacts.of(
            sha256=[one for seen in every for one in seen.sha256],
            size=[one for seen in every for one in seen.size],
            box=[one for seen in every for one in seen.box],
        )
        return facts, {
            first + slot: reason
            for first, seen in self.parts
            for slot, reason in sorted(seen.reasons.items())
        }


class Output:
    """One owner's rows of a shard on their way to disk."""

    def __init__(self, unit: Unit, writer: ShardWriter, sums: ShardSums | None = None) -> None:
        self.unit, self.writer, self.sums = unit, writer, sums
        self.reasons: dict[int, str] = {}
        """Why a row of this owner cannot be stored, beside what is wrong with its image."""
        self.files: list[Future[None]] = []
        """What its commit waits for: files that are written, and sums."""
        self.last_sum: Future[None] | None = None


class Work:
    """Teachers that share a forward pass, over one shard."""

    def __init__(
        self,
        unit: Unit,
        names: Sequence[str],
        runners: Sequence[TeacherRunner],
        outputs: Sequence[Output],
    ) -> None:
        self.unit, self.names, self.runners = unit, tuple(names), runners
        self.outputs = outputs
        self._batch_rows = runners[0].info.rows_per_forward
        self._next = 0
        self._parts: deque[PendingShard] = deque()

    def arrived(self, part: PendingShard) -> Iterator[int]:
        """The starts of the batches that the next part of the shard completes."""
        self._parts.append(part)
        while self._next < part.stop:
            start = self._next
            if start + self.num_rows(start) > part.stop:
                return
            self._next += self._batch_rows
            yield start

    def num_rows(self, start: int) -> int:
        """Of the batch at ``start``."""
        return min(self._batch_rows, self.unit.num_rows - start)

    def prepare(self, start: int) -> Sent:
        """The teachers' input of the batch at ``start``, when its images are there. Parts that no
        later batch needs are let go."""
        first, stop = self.runners[0], start + self.num_rows(start)
        pixels = [
            part.rows(first.rendering, max(start, part.first), min(stop, part.stop))
            for part in tuple(self._parts)
            if part.first < stop
        ]
        sent = first.prepare(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        while self._parts and self._parts[0].stop <= stop:
            self._parts.popleft()
        return sent
