"""Which shards a worker takes when several extract one cache.

Worker r of R takes the shards whose number leaves the remainder r when divided by R: a restarted
worker, and one of a cache that has grown, finds the same shards again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from phistill.cache.storage.lock import Holder
from phistill.errors import UsageError, counted

MAX_NAMED = 5
"""Shards of a worker that are named, of those that are left."""


@dataclass(frozen=True, slots=True)
class WorkerShards:
    """Worker ``index`` of ``count``, from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"worker {self.index}/{self.count}: workers are counted from 0, so of {self.count} "
                f"the last is {self.count - 1}/{self.count}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """``r/R``."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise UsageError(f"worker {text!r} is not r/R: 0/4, 1/4, 2/4 and 3/4 are four workers.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, shards: Iterable[int]) -> list[int]:
        """Those of ``shards`` that are this worker's."""
        return [shard for shard in shards if shard % self.count == self.index]

    def split(self, index: int, count: int) -> WorkerShards:
        """Part ``index`` of ``count`` of this worker: one that is several processes."""
        return WorkerShards(self.index + self.count * index, self.count * count)


def who_misses(
    missing: Sequence[int], worker: WorkerShards, writing: Sequence[Holder], command: str
) -> list[str]:
    """A line for each worker that has not finished: which shards are left, and who extracts them
    or how ``command`` does."""
    lines = []
    for index in sorted({shard % worker.count for shard in missing}):
        other = WorkerShards(index, worker.count)
        theirs = other.of(missing)
        them = "it" if len(theirs) == 1 else "them"
        who = " and ".join(str(holder) for holder in writing if any(map(holder.may_hold, theirs)))
        todo = (
            f"{who} is extracting {them}."
            if who
            else (f"nobody is extracting {them}; run `{command} --worker {other}`.")
        )
        named = ", ".join(map(str, theirs[:MAX_NAMED])) + (", ..." if theirs[MAX_NAMED:] else "")
        lines.append(f"{counted(len(theirs), 'shard')} left of worker {other} ({named}): {todo}")
    return lines
