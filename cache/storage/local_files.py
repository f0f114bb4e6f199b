"""The files of a cache in a folder of a local file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from . import lock
from .local_shard import LocalShard
from .publish import Buffer, leftovers, publish_chunks, remove, remove_files

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A folder on a local file system."""

    root: Path

    joins_rows: ClassVar[bool] = False

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

    @property
    def is_far(self) -> bool:
        return False

    def mapped(self, relative: str, *, whole: bool = False) -> NDArray[np.uint8]:
        path = self.path(relative)
        try:
            with pa.memory_map(str(path)) as file:  # unlike mmap's, it holds no file open
                return np.frombuffer(file.read_buffer(), np.uint8)
        except OSError as error:
            if error.errno is None:  # not a file; the message says so of the path
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error

    def version(self, relative: str) -> object:
        try:
            found = self.path(relative).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

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

    def versions(self, folder: str) -> dict[str, object]:
        return {relative: self.version(relative) for relative in self._below(self.path(folder))}

    def walk(self) -> list[str]:
        return self._below(self.root)

    def _below(self, top: Path) -> list[str]:
        return sorted(
            Path(folder, name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(top)
            for name in names
        )

    def delete(self, relative: str) -> None:
        remove(self.path(relative))

    def delete_all(self, relatives: Sequence[str]) -> None:
        remove_files([self.path(relative) for relative in relatives])

    def sweep(self) -> int:
        partial = list(leftovers(self.root))
        for path in partial:
            path.unlink(missing_ok=True)
        return len(partial)

    def writing(self, shards: Sequence[int] | None = None) -> AbstractContextManager[None]:
        return lock.writing(self.root, shards)

    def holders(self) -> tuple[lock.Holder, ...]:
        return lock.holders(self.root)

    def open_shard(
        self, relative: str, *, file_rows: int, row_bytes: int, num_bytes: int, checked: bool
    ) -> LocalShard:
        path = f"{self.root}/{relative}"  # joining paths takes as long as opening one
        shard = LocalShard(path, row_bytes, num_bytes)
        if not checked:
            shard.require_whole(path, file_rows)
        return shard

    def each(self, do: Callable[[T], object], items: Sequence[T]) -> None:
        for item in items:
            do(item)

    def read_compressed(self, array_path: str, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        import zarr

        array: Any = zarr.open_array(self.root, path=array_path, mode="r")
        out[...] = array.oindex[rows]
