"""Features on their way to codes, in threads of their own: a core codes some tens of rows a second
of a wide teacher, far fewer than a GPU gives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from phistill.cache.shard_writer import ShardWriter, StoredBlock
from phistill.compute.blas import one_blas_thread

from ..decode.shards import num_cores
from .work import Output

MAX_CODERS = 8
"""Threads at most, a batch of one teacher each. Half the cores where those are fewer."""


def num_coders() -> int:
    return max(1, min(MAX_CODERS, num_cores() // 2))


class CodingQueue:
    """Batches that are being coded; one thread puts them and takes them, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Output, Future[StoredBlock]]] = deque()

    def put(
        self,
        pool: ThreadPoolExecutor,
        output: Output,
        values: Mapping[str, NDArray[Any]],
        rejected: Set[int],
    ) -> None:
        self._waiting.append((output, pool.submit(_code, output.writer, values, rejected)))

    def take(self, *, num_left: int) -> Iterator[tuple[Output, StoredBlock]]:
        """Wait for all but the last ``num_left``."""
        while len(self._waiting) > num_left:
            output, block = self._waiting.popleft()
            yield output, block.result()


def _code(
    writer: ShardWriter, values: Mapping[str, NDArray[Any]], rejected: Set[int]
) -> StoredBlock:
    with one_blas_thread():  # others code beside it
        return writer.code(values, rejected)
