"""Where the files of a cache lie: read, publish, list, delete by relative path.

Everything else in this room speaks of relative POSIX paths, so that a cache can lie on a local file
system or on an object store. ``open_files`` turns what a person typed into a ``Files``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from phistill.errors import CorruptCache, repair_text

from . import lock
from .local_shard import LocalShard, OpenShard
from .publish import Buffer, fsync_folder, leftovers, publish_chunks

T = TypeVar("T")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""How a URL begins; a ``Path`` leaves it one slash."""


class Files(Protocol):
    """The files below one root. Hashable, equal by place, and picklable."""

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

    def publish(self, relative: str, chunks: Iterable[Buffer]) -> None:
        """Write the whole file atomically and durably."""

    def create(self, relative: str, data: bytes) -> None:
        """Publish what nobody else may have written. Where the storage can tell, another content
        is refused with CacheMismatch, and the same content is fine."""

    def replace(self, relative: str, data: bytes, version: Any) -> Any:
        """Publish over the content that ``read_version`` gave, as ``create``; the new version."""

    def names_in(self, folder: str) -> list[str]:
        """Names directly inside ``folder``, sorted; empty when it does not exist."""

    def walk(self) -> list[str]:
        """Every file below the root, sorted, as relative POSIX paths."""

    def delete(self, relative: str) -> None:
        """Delete a file or a folder with all it holds."""

    def sweep(self) -> int:
        """Delete what killed writers left half written; returns how many."""

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Hold the whole cache for writing, or only ``shards``; LockHeld names who has it."""

    def holders(self) -> tuple[lock.Holder, ...]:
        """The processes that hold some of the cache for writing now."""

    def open_shard(
        self, relative: str, *, shard_rows: int, row_bytes: int, num_bytes: int
    ) -> OpenShard:
        """A committed shard of ``num_bytes``, to read rows of ``row_bytes`` from.

        CorruptCache when it is not there, has another size, or its index is damaged.
        """

    def each(self, do: Callable[[T], object], items: Sequence[T]) -> None:
        """Do something for every item, several at a time where that is faster."""

    def zarr_store(self) -> Any:
        """What zarr opens to read the same files."""


def open_files(location: str | Path | Files) -> Files:
    """The files at a path or URL; nothing is looked at yet.

    UsageError for a URL of a kind that is not supported.
    """
    if not isinstance(location, str | Path):
        return location
    text = str(location)
    if text.startswith("file://"):
        return LocalFiles(Path(unquote(urlsplit(text).path)))
    if _SCHEME.match(text):
        from .object_files import ObjectFiles

        return ObjectFiles(text if "://" in text else text.replace(":/", "://", 1))
    return LocalFiles(Path(location))


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A folder on a local file system."""

    root: Path

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def absolute(self) -> str:
        return str(self.root.resolve())

    @property
    def name(self) -> str:
        return self.root.name

    def path(self, relative: str) -> Path:
        return self.root / relative

    def where(self, relative: str) -> str:
        return str(self.path(relative))

    def exists(self, relative: str) -> bool:
        return self.path(relative).exists()

    def size(self, relative: str) -> int | None:
        path = self.path(relative)
        return path.stat().st_size if path.is_file() else None

    def read(self, relative: str, *, max_bytes: int | None = None) -> bytes:
        path = self.path(relative)
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise CorruptCache(f"{path} has {size:,} bytes; at most {max_bytes:,} is expected.")
        return path.read_bytes()

    def read_version(self, relative: str, *, max_bytes: int | None = None) -> tuple[bytes, Any]:
        return self.read(relative, max_bytes=max_bytes), None

    def publish(self, relative: str, chunks: Iterable[Buffer]) -> None:
        publish_chunks(self.path(relative), chunks)

    def create(self, relative: str, data: bytes) -> None:
        self.publish(relative, [data])  # the lock keeps others away

    def replace(self, relative: str, data: bytes, version: Any) -> Any:
        self.publish(relative, [data])

    def names_in(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self) -> list[str]:
        return sorted(
            Path(folder, name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(self.root)
            for name in names
        )

    def delete(self, relative: str) -> None:
        path = self.path(relative)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)

    def sweep(self) -> int:
        found = list(leftovers(self.root))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        return lock.writing(self.root, shards)

    def holders(self) -> tuple[lock.Holder, ...]:
        return lock.holders(self.root)

    def open_shard(
        self, relative: str, *, shard_rows: int, row_bytes: int, num_bytes: int
    ) -> OpenShard:
        return LocalShard(
            self.path(relative), shard_rows, row_bytes, num_bytes, repair_text(self.location)
        )

    def each(self, do: Callable[[T], object], items: Sequence[T]) -> None:
        for item in items:
            do(item)

    def zarr_store(self) -> Any:
        return self.root
