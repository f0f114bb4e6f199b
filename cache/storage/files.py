"""What a place where a cache lies can do: read, publish, list, delete by relative path.

Everything above this room speaks of relative POSIX paths, so that a cache can lie on a local file
system (``local_files``) or on an object store (``objects``). Errors say which file and what is
wrong with it; what to do is for whoever knows the cache and the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..format.columns import Bytes
from .lock import Holder
from .publish import Buffer

T = TypeVar("T")


class BadRow(Exception):
    """The bytes of one row are not those that were written; the reader says which row it is."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.slot = slot


class OpenShard(Protocol):
    """One file of a committed shard, n rows of b bytes, open for reading."""

    def read(self, slots: Sequence[int], positions: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Row ``slots[i]`` of the file into ``out[positions[i]]`` (b,); BadRow where its crc32c
        fails."""

    def read_row(self, slot: int, row: NDArray[np.uint8], checksum: memoryview) -> None:
        """One row of the file into ``row`` (b,), with room for its checksum (4,); as ``read``."""

    def prefetch(self, slots: range) -> None:
        """Bring consecutive rows nearer: all of them will be read soon."""

    def release(self, slots: range) -> None:
        """Keep these rows in memory no more."""


class Files(Protocol):
    """The files below one root. Hashable, equal by place, and picklable."""

    joins_rows: ClassVar[bool]
    """Whether rows of one shard are read faster together than one by one."""

    @property
    def location(self) -> str:
        """The root as a person types it; for messages and for opening it again."""

    @property
    def absolute(self) -> str:
        """The root as it can be opened from any working folder."""

    @property
    def name(self) -> str:
        """Last part of the location."""

    def __hash__(self) -> int: ...

    def where(self, relative: str) -> str:
        """A file's full name, for messages."""

    def exists(self, relative: str) -> bool: ...

    def size(self, relative: str) -> int | None:
        """Bytes of a file; None when it is not there."""

    def read(self, relative: str, *, max_bytes: int | None = None) -> bytes:
        """The whole content; FileNotFoundError when it is not there."""

    def read_version(self, relative: str, *, max_bytes: int | None = None) -> tuple[bytes, Any]:
        """The whole content, and what ``replace`` needs to know that it is still the same."""

    @property
    def is_far(self) -> bool:
        """Whether every look costs a round trip, so that what was listed is remembered."""

    def mapped(self, relative: str, *, whole: bool = False) -> Bytes:
        """The content, of which parts can be had, without reading the rest unless the ``whole`` is
        wanted; FileNotFoundError when it is not there."""

    def version(self, relative: str) -> object:
        """What changes when a file is published again, None when it is not there."""

    def publish(self, relative: str, chunks: Iterable[Buffer]) -> None:
        """Write the whole file atomically and durably."""

    def create(self, relative: str, data: bytes) -> None:
        """Publish what nobody else may have written. Where the storage can tell, another content
        is refused with CacheMismatch, and the same content is fine."""

    def replace(self, relative: str, data: bytes, version: Any) -> Any:
        """Publish over the content that ``read_version`` gave, as ``create``; the new version."""

    def names_in(self, folder: str) -> list[str]:
        """Names directly inside ``folder``, sorted; empty when it does not exist."""

    def versions(self, folder: str) -> dict[str, object]:
        """``version`` of every file below a folder, by relative path."""

    def walk(self) -> list[str]:
        """Every file below the root, sorted, as relative POSIX paths."""

    def delete(self, relative: str) -> None:
        """Delete a file or a folder with all it holds."""

    def delete_all(self, relatives: Sequence[str]) -> None:
        """Delete many files of one folder, durable together."""

    def sweep(self) -> int:
        """Delete what killed writers left half written; returns how many."""

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Hold the whole cache for writing, or only ``shards``; LockHeld names who has it."""

    def holders(self) -> tuple[Holder, ...]:
        """The processes that hold some of the cache for writing now."""

    def open_shard(
        self, relative: str, *, file_rows: int, row_bytes: int, num_bytes: int, checked: bool
    ) -> OpenShard:
        """A file of a committed shard, of ``num_bytes`` and made for ``file_rows``, to read rows of
        ``row_bytes`` from.

        CorruptCache when it is not there or, unless that was ``checked`` before, has another size
        or a damaged index.
        """

    def each(self, do: Callable[[T], object], items: Sequence[T]) -> None:
        """Do something for every item, several at a time where that is faster."""

    def read_compressed(self, array_path: str, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Fill ``out`` (n, ...) with ``rows`` (n,) of an array, decoded by zarr, which raises
        nearly anything on damaged bytes."""
