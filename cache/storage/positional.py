"""Reading and writing at a place in an open file, also where the system lacks POSIX's calls for it.

Linux has them all, macOS no ``posix_fadvise`` and in older versions no ``preadv``, Windows none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

_POSITION = threading.Lock()
"""Held while a descriptor's own position is used: threads share it."""


def open_to_read(path: Path | str) -> int:
    """A descriptor of the file's bytes as they are."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def _read_part(descriptor: int, num_bytes: int, offset: int) -> bytes:
    with _POSITION:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, num_bytes)


pread = getattr(os, "pread", _read_part)
"""``pread(descriptor, num_bytes, offset)``: up to so many bytes; fewer where the file ends."""


def _read_parts(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    done = 0
    for buffer in buffers:
        data = pread(descriptor, buffer.nbytes, offset + done)
        buffer.cast("B")[: len(data)] = data
        done += len(data)
        if len(data) < buffer.nbytes:
            break
    return done


preadv = getattr(os, "preadv", _read_parts)
"""``preadv(descriptor, buffers, offset)``: fills them one after another; the number of bytes."""


def _write_first(descriptor: int, buffers: Sequence[memoryview]) -> int:
    return os.write(descriptor, buffers[0]) if buffers else 0


writev = getattr(os, "writev", _write_first)
"""``writev(descriptor, buffers)``: the number of bytes that were taken, perhaps not all."""


def will_need(descriptor: int, offset: int, num_bytes: int) -> None:
    """Tell the system that these bytes will be read soon, where it can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_WILLNEED)


def fsync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk; Windows has no such call, and its file systems
    log their own changes."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
