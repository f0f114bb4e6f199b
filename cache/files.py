"""The files of a cache on a local disk: read, publish, list, delete by relative path.

Everything else in this room speaks of relative POSIX paths, so that a cache can lie elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import CorruptCache
from .publish import Buffer, fsync_folder, leftovers, publish_chunks


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A folder on a local file system."""

    root: Path

    def path(self, relative: str) -> Path:
        return self.root / relative

    def exists(self, relative: str) -> bool:
        return self.path(relative).exists()

    def read(self, relative: str, *, max_bytes: int | None = None) -> bytes:
        """The whole content; FileNotFoundError when it is not there."""
        path = self.path(relative)
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise CorruptCache(f"{path} has {size:,} bytes; at most {max_bytes:,} is expected.")
        return path.read_bytes()

    def publish(self, relative: str, chunks: Iterable[Buffer]) -> None:
        """Write the whole file atomically and durably."""
        publish_chunks(self.path(relative), chunks)

    def names_in(self, folder: str) -> list[str]:
        """Names directly inside ``folder``, sorted; empty when it does not exist."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except FileNotFoundError:
            return []

    def walk(self) -> list[str]:
        """Every file below the root, sorted, as relative POSIX paths."""
        return sorted(
            Path(folder, name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(self.root)
            for name in names
        )

    def delete(self, relative: str) -> None:
        """Delete a file or a folder with all it holds."""
        path = self.path(relative)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)

    def sweep(self) -> int:
        """Delete what killed writers left under temporary names; returns how many."""
        found = list(leftovers(self.root))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)
