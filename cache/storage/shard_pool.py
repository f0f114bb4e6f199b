"""The shards that this process holds open, over all its readers: one budget, from its own limit.

Every reader of an array opens shards, and a run reads several arrays of several caches, so no
reader can know how many files are left. The shard that was used longest ago goes first; whoever
still reads from it keeps it until then.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from threading import Lock

from phistill.errors import StoreError

from .files import OpenShard
from .limits import is_out_of_files, open_file_limit, out_of_files_text

PARTS = 2
"""Of so many parts of the limit one is for shards: images, workers and libraries open files too."""


class ShardPool:
    """Open shards by a key of their reader's and their number. Thread-safe."""

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._shards: OrderedDict[tuple[Hashable, int], OpenShard] = OrderedDict()
        self._retired: deque[Hashable] = deque()
        self._lock = Lock()

    @property
    def size(self) -> int:
        """The most shards that are held open."""
        if self._size is None:
            self._size = max(1, open_file_limit() // PARTS)
        return self._size

    def __len__(self) -> int:
        return len(self._shards)

    def find(self, reader: Hashable, shard: int) -> OpenShard | None:
        """The reader's shard if it is open."""
        key = (reader, shard)
        with self._lock:
            opened = self._shards.get(key)
            if opened is not None:
                self._shards.move_to_end(key)
            return opened

    def open(
        self, reader: Hashable, shard: int, open_shard: Callable[[int], OpenShard]
    ) -> OpenShard:
        """Hold a shard that ``find`` did not; StoreError when no file can be opened."""
        opened = self._opened(open_shard, shard)
        with self._lock:
            self._drop_retired()
            self._shards[reader, shard] = opened
            while len(self._shards) > self.size:
                self._shards.popitem(last=False)
        return opened

    def _opened(self, open_shard: Callable[[int], OpenShard], shard: int) -> OpenShard:
        try:
            return open_shard(shard)
        except OSError as error:
            if not is_out_of_files(error):
                raise
        with self._lock:  # others took more than their part: give half of ours back
            self._size = max(1, len(self._shards) // 2)
            while len(self._shards) > self._size:
                self._shards.popitem(last=False)
        try:
            return open_shard(shard)
        except OSError as error:
            if not is_out_of_files(error):
                raise
            raise StoreError(f"{error.filename} cannot be opened. {out_of_files_text()}") from error

    def forget(self, reader: Hashable, shards: set[int]) -> None:
        """Hold these shards of a reader no more: they were written anew."""
        with self._lock:
            for shard in shards:
                self._shards.pop((reader, shard), None)

    def retire(self, reader: Hashable) -> None:
        """Hold nothing of a reader that is gone. Called while the interpreter cleans up, perhaps in
        the midst of another call here, which then does it."""
        self._retired.append(reader)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_retired()
            finally:
                self._lock.release()

    def _drop_retired(self) -> None:
        while self._retired:
            reader = self._retired.popleft()
            for key in [key for key in list(self._shards) if key[0] == reader]:
                self._shards.pop(key, None)

    def reset(self) -> None:
        """Begin anew, in a child that was forked while another thread had the lock."""
        self._lock = Lock()
        self._shards = OrderedDict()


POOL = ShardPool()
"""That of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.reset)
