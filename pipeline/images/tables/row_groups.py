"""Row groups of parquet tables on their way through: read ahead of their images, dropped after the
last of them, and never more bytes of them than a limit, or one where it is larger than that.

Which images will be read is known from the index, in order; a row group can only be read whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Group = tuple[str, int]
"""A table and the number of a row group in it."""

NUM_READERS = 2
"""One reads ahead while the other reads what somebody waits for."""


class RowGroupBuffer:
    """At most ``limit_bytes`` of row groups."""

    def __init__(
        self,
        read: Callable[[Group], pa.ChunkedArray],
        num_bytes: Callable[[Group], int],
        limit_bytes: int,
    ) -> None:
        """``read`` gives the images of a row group, ``num_bytes`` how large they are."""
        self._read, self._num_bytes, self._limit_bytes = read, num_bytes, limit_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[Group, Future[pa.ChunkedArray]] = OrderedDict()
        """Here or on their way, the one that was used last at the end."""
        self._held_bytes = 0
        self._wanted: dict[Group, NDArray[np.bool_]] = {}
        """Rows that are still to be read, of each row group that is expected."""
        self._waiting: deque[Group] = deque()
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="row-groups")

    @property
    def held_bytes(self) -> int:
        """Of the row groups that are here or on their way."""
        return self._held_bytes

    def expect(self, rows: Iterable[tuple[Group, int]], num_rows: Callable[[Group], int]) -> None:
        """These rows of row groups, which have ``num_rows``, will be read, about in this order."""
        wanted: dict[Group, NDArray[np.bool_]] = {}
        for group, row in rows:
            if group not in wanted:
                wanted[group] = np.zeros(num_rows(group), np.bool_)
            wanted[group][row] = True
        with self._lock:
            self._wanted, self._waiting = wanted, deque(wanted)
            self._read_ahead()

    def value(self, group: Group, row: int) -> Any:
        """What the column of images holds in a row. Called from several threads."""
        with self._lock:
            if group not in self._held:
                self._make_room(self._num_bytes(group))
                self._begin(group)
            self._held.move_to_end(group)
            column = self._held[group]
        try:
            return column.result()[row].as_py()
        except BaseException:
            with self._lock:
                self._drop(group)  # it gets another chance
            raise
        finally:
            with self._lock:
                self._is_read(group, row)

    def close(self) -> None:
        """Drop everything; what is being read is finished first."""
        with self._lock:
            self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            self._held.clear()
            self._held_bytes = 0

    def _begin(self, group: Group) -> None:
        self._held[group] = self._pool.submit(self._read, group)
        self._held_bytes += self._num_bytes(group)

    def _is_read(self, group: Group, row: int) -> None:
        rows = self._wanted.get(group)
        if rows is None:
            return
        rows[row] = False
        if not rows.any():
            del self._wanted[group]
            self._drop(group)
            self._read_ahead()

    def _drop(self, group: Group) -> None:
        if self._held.pop(group, None) is not None:
            self._held_bytes -= self._num_bytes(group)

    def _make_room(self, num_bytes: int) -> None:
        """Drop what was not used for longest; whoever still reads it keeps it meanwhile."""
        while self._held and self._held_bytes + num_bytes > self._limit_bytes:
            self._drop(next(iter(self._held)))

    def _read_ahead(self) -> None:
        """Begin with the row groups that come next, as far as there is room."""
        while self._waiting:
            group = self._waiting[0]
            if group in self._wanted and group not in self._held:
                room = self._limit_bytes - self._held_bytes
                if self._num_bytes(group) > room:
                    return
                self._begin(group)
            self._waiting.popleft()
