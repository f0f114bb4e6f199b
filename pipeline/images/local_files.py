"""Reading local files: tried again when a disk hiccups, and never mistaken for a bad image."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from phistill.cache.storage.limits import is_out_of_files, out_of_files_text
from phistill.cache.storage.positional import open_to_read, pread
from phistill.errors import SourceError

log = logging.getLogger(__name__)

NUM_TRIES = 3
"""A read error may be a hiccup of a network file system; it is tried this often."""

FIRST_WAIT_S = 0.1
"""Before the second try; four times as long before each further one."""

T = TypeVar("T")


def retried(action: Callable[[], T], path: Path) -> T:
    """The action's result; SourceError when the file is gone or cannot be read after all tries."""
    for attempt in range(NUM_TRIES):
        try:
            return action()
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is in the index and is gone. Put it back, or name the source that has it."
            ) from error
        except OSError as error:  # pyarrow raises a plain one for damaged tables too
            failure = error
            if attempt + 1 < NUM_TRIES:
                log.debug("%s not read, trying again: %s", path, error)
                time.sleep(FIRST_WAIT_S * 4**attempt)
    if isinstance(failure, PermissionError):
        advice = "Give this user the right to read it."
    else:
        advice = out_of_files_text() if is_out_of_files(failure) else "Mend the disk."
    raise SourceError(
        f"{path} cannot be read ({failure.strerror or failure}), tried {NUM_TRIES} times. "
        f"{advice} Nothing was recorded for it; run the same command again."
    )


def in_a_thread(action: Callable[[], T]) -> T:
    """The action's result. A place that does not answer (a dead NFS server) cannot be interrupted
    where it is waited for: in a thread of its own, signals still reach the run."""
    result: Future[T] = Future()

    def act() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=act, name="look", daemon=True).start()
    return result.result()


def is_too_long(path: Path) -> bool:
    """Whether no file of this system can have so long a name."""
    try:
        path.exists()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def is_file(path: Path) -> bool:
    """Whether the path names a file; one that is too long names none."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def read_file(path: Path) -> bytes:
    return retried(path.read_bytes, path)


def read_part(path: Path, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``; SourceError when the file ends before."""

    def read() -> bytes:
        descriptor = open_to_read(path)
        try:
            return read_bytes_at(descriptor, offset, length)
        finally:
            os.close(descriptor)

    data = retried(read, path)
    if len(data) < length:
        raise SourceError(
            f"{path} ends {length - len(data):,} bytes before the image at {offset:,} does. "
            "It changed after it was indexed; put the old one back, or make a new cache."
        )
    return data


def read_bytes_at(descriptor: int, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset`` of an open file, fewer where it ends."""
    data = bytearray()
    while len(data) < length:
        part = pread(descriptor, length - len(data), offset + len(data))
        if not part:
            break
        data += part
    return bytes(data)
