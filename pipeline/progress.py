"""Where a run is, and what its teachers are waiting for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import filesize

WAIT_WORTH_SAYING = 0.05
"""From this share of the time on, what the teachers wait for is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractProgress:
    """Where a run is; ``rows`` are counted over all teachers and the pixels."""

    done_rows: int
    """Committed: a run that is killed now goes on after them."""
    computed_rows: int
    """Through the teachers, committed or not."""
    total_rows: int
    num_images: int
    """Rows of the cache that miss something: ``total_rows`` counts each once per owner."""
    num_rejects: int
    written_bytes: int
    elapsed_s: float
    """Since the run began, teachers built and images listed included."""
    pass_s: float
    """Since the first image was asked for."""
    images_wait_s: float | None = None
    """Of these, the teachers waited for images; None where they run elsewhere."""
    disk_wait_s: float | None = None
    """Of these, they waited for earlier shards to be written."""

    @property
    def images_per_s(self) -> float:
        """Images through everything they miss."""
        if not self.total_rows or self.pass_s <= 0:
            return 0.0
        return self.computed_rows / self.total_rows * self.num_images / self.pass_s

    @property
    def busy(self) -> float | None:
        """Share of the time in which the teachers neither waited for images nor for the disk."""
        if self.images_wait_s is None or self.disk_wait_s is None:
            return None
        if self.pass_s <= 0:
            return 0.0
        return max(0.0, 1.0 - (self.images_wait_s + self.disk_wait_s) / self.pass_s)

    @property
    def bytes_per_s(self) -> float:
        """Written to the cache."""
        return self.written_bytes / self.pass_s if self.pass_s > 0 else 0.0

    @property
    def num_done(self) -> int:
        """Images through everything they miss; one through half of its teachers counts a half."""
        return self.computed_rows * self.num_images // self.total_rows if self.total_rows else 0

    @property
    def num_total(self) -> int:
        return self.num_images

    def note(self) -> str:
        """``41.2 images/s, teachers busy 97 %, 12.3 MB/s written, 0 rejected``."""
        speed = self.images_per_s
        parts = [f"{speed:.3g} images/s" if speed < 100 else f"{speed:,.0f} images/s"]
        if self.busy is not None:
            parts.append(f"teachers busy {self.busy:.0%}{self._waiting()}")
        parts.append(f"{filesize.decimal(round(self.bytes_per_s))}/s written")
        parts.append(f"{self.num_rejects:,} rejected")
        return ", ".join(parts)

    def _waiting(self) -> str:
        waits = {"images": self.images_wait_s or 0.0, "the disk": self.disk_wait_s or 0.0}
        shares = {cause: wait_s / self.pass_s for cause, wait_s in waits.items() if self.pass_s > 0}
        named = [
            f"{share:.0%} waiting for {cause}"
            for cause, share in shares.items()
            if share >= WAIT_WORTH_SAYING
        ]
        return f" ({', '.join(named)})" if named else ""

    @property
    def left_s(self) -> float | None:
        """Seconds until everything is done at the speed so far; None before there is one."""
        if not self.computed_rows:
            return None
        return self.pass_s * (self.total_rows - self.computed_rows) / self.computed_rows


class Stopwatch:
    """How long the thread of the teachers has waited, and for what."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()
        self.images_s = self.disk_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @contextmanager
    def waiting_for_images(self) -> Iterator[None]:
        before = self._clock()
        try:
            yield
        finally:
            self.images_s += self._clock() - before

    @contextmanager
    def waiting_for_the_disk(self) -> Iterator[None]:
        before = self._clock()
        try:
            yield
        finally:
            self.disk_s += self._clock() - before
