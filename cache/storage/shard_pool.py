"""The shards that this process holds open, over all its readers: one budget, from its own limit.

Every reader of an array opens shards, and a run reads several arrays of several caches, so no
reader can know how many files are left. The shard that was opened longest ago goes first: rows
come in random order, or shard after shard, and in neither is it wanted sooner than another.
Whoever still reads from it keeps it until then.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
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
        self._held: dict[Hashable, dict[int, OpenShard]] = {}
        self._opened: deque[tuple[Hashable, int]] = deque()
        """In the order of opening; some may be held no more."""
        self._num_held = 0
        self._retired: deque[Hashable] = deque()
        self._lock = Lock()

    @property
    def size(self) -> int:
        """The most shards that are held open."""
        if self._size is None:
            self._size = max(1, open_file_limit() // PARTS)
        return self._size

    def __len__(self) -> int:
        return self._num_held

    def held(self, reader: Hashable) -> Mapping[int, OpenShard]:
        """The reader's shards that are open, always up to date: looking one up takes no lock."""
        with self._lock:
            return self._held.setdefault(reader, {})

    def open(
        self, reader: Hashable, shard: int, open_shard: Callable[[int], OpenShard]
    ) -> OpenShard:
        """Hold a shard that was not ``held``; StoreError when no file can be opened."""
        opened = self._open(open_shard, shard)
        with self._lock:
            self._drop_retired()
            held = self._held.setdefault(reader, {})
            self._num_held += shard not in held
            held[shard] = opened
            self._opened.append((reader, shard))
            self._shrink(self.size)
        return opened

    def _open(self, open_shard: Callable[[int], OpenShard], shard: int) -> OpenShard:
        try:
            return open_shard(shard)
        except OSError as error:
            if not is_out_of_files(error):
                raise
        with self._lock:  # others took more than their part: give half of ours back
            self._size = max(1, self._num_held // 2)
            self._shrink(self._size)
        try:
            return open_shard(shard)
        except OSError as error:
            if not is_out_of_files(error):
                raise
            raise StoreError(f"{error.filename} cannot be opened. {out_of_files_text()}") from error

    def _shrink(self, size: int) -> None:
        while self._num_held > size:
            self._drop(*self._opened.popleft())

    def _drop(self, reader: Hashable, shard: int) -> None:
        if self._held.get(reader, {}).pop(shard, None) is not None:
            self._num_held -= 1

    def forget(self, reader: Hashable, shards: Iterable[int]) -> None:
        """Hold these shards of a reader no more: they were written anew."""
        with self._lock:
            for shard in shards:
                self._drop(reader, shard)

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
        gone = set()
        while self._retired:
            gone.add(self._retired.popleft())
        if gone:
            self._num_held -= sum(len(self._held.pop(reader, {})) for reader in gone)
            self._opened = deque(one for one in self._opened if one[0] not in gone)

    def reset(self) -> None:
        """Begin anew, in a child that was forked while another thread had the lock."""
        self._lock = Lock()
        for held in self._held.values():
            held.clear()
        self._opened.clear()
        self._num_held = 0


POOL = ShardPool()
"""That of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.reset)
