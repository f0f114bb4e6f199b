"""Packing beside the work: a range of shards as soon as all of them are committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor

from phistill.cache import Cache, CommitRecord
from phistill.cache.upkeep.pack import PackReport, pack


class Packing:
    """Ranges of shards that are packed as soon as all of them are committed, beside the work."""

    def __init__(self, cache: Cache, held: Set[int], missing: Mapping[str, Set[int]]) -> None:
        """Only ranges all of whose shards are ``held``; ``missing`` are to come, by owner."""
        self._cache = cache
        whole = {n for n, shards in cache.info.ranges().items() if set(shards) <= held}
        to_come = (self._number(shard) for shards in missing.values() for shard in shards)
        self._left = Counter(number for number in to_come if number in whole)
        self._started: list[Future[PackReport]] = []

    def count(self, record: CommitRecord) -> None:
        """A shard was committed."""
        self._left[self._number(record.shard)] -= 1

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Pack what is complete; the last range is for whoever ends the run."""
        complete = [number for number, left in self._left.items() if left == 0]
        for number in complete if len(self._left) > 1 else ():
            del self._left[number]
            self._started.append(pool.submit(pack, self._cache, {number}))

    def wait(self) -> None:
        """Raises what packing raised."""
        for packed in self._started:
            packed.result()

    def _number(self, shard: int) -> int:
        return shard // self._cache.info.pack_shards
