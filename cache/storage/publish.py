"""Publishing a file so that a reader sees all of it or none of it, whatever is killed when.

A file is written under a temporary name beside its place, flushed to the disk, renamed, and the
folder that holds its name is flushed too. POSIX rename is atomic; without the two fsync a power
cut can leave a name that points at nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from phistill.errors import PhistillError

from .limits import is_out_of_files, out_of_files_text
from .positional import fsync_folder, writev

_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)

TEMPORARY_SUFFIX = ".partial"
"""One writer owns a file at a time, so the temporary name can be fixed: a repeated write reuses it
and nothing is left behind."""

MAX_BUFFERS_PER_WRITE = 1024
"""IOV_MAX of Linux and macOS."""

Buffer = bytes | bytearray | memoryview


class PublishError(PhistillError, OSError):
    """The file system refused the bytes; the message says which and how many."""


def publish_bytes(path: Path, data: Buffer) -> None:
    """Publish one buffer as the whole content of ``path``."""
    publish_chunks(path, (data,))


def publish_chunks(path: Path, chunks: Iterable[Buffer]) -> None:
    """Publish the concatenation of ``chunks`` as the whole content of ``path``.

    Raises PublishError naming the path and the bytes that were to be written.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    buffers = [memoryview(chunk).cast("B") for chunk in chunks]
    num_bytes = sum(buffer.nbytes for buffer in buffers)
    try:
        make_folder(path.parent)
        descriptor = os.open(temporary, _TO_WRITE, 0o666)
        try:
            write_all(descriptor, buffers)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        _forget(temporary)
        raise _refused(path, num_bytes, error) from error


@contextlib.contextmanager
def explained(path: Path, num_bytes: int) -> Iterator[None]:
    """Raise what the file system refuses while ``path`` is written as a PublishError."""
    try:
        yield
    except OSError as error:
        raise _refused(path, num_bytes, error) from error


def remove(path: Path) -> None:
    """Remove a file or a folder with all that lies in it, for good; nothing there is no error.

    Raises PublishError naming the path.
    """
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)
    except OSError as error:
        raise PublishError(
            f"{path} could not be removed: {error.strerror or error}. {_advice(error)}"
        ) from error


def remove_files(paths: Sequence[Path]) -> None:
    """Remove files of one folder for good, which is flushed once; one that is gone is no error.

    Raises PublishError naming the path.
    """
    path = None
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        if path is not None and path.parent.exists():
            fsync_folder(path.parent)
    except OSError as error:
        raise PublishError(
            f"{path} could not be removed: {error.strerror or error}. {_advice(error)}"
        ) from error


def _refused(path: Path, num_bytes: int, error: OSError) -> PublishError:
    return PublishError(
        f"{path} could not be written ({num_bytes:,} bytes): {error.strerror or error}. "
        f"{_advice(error)}"
    )


def _advice(error: OSError) -> str:
    if is_out_of_files(error):
        return out_of_files_text()
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return "Choose another path."
    if error.errno == errno.EFBIG:
        return (
            "A file may not be that large here (ulimit -f, or the file system): raise the limit, "
            "or choose another place."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make the place writable, or choose another."
    return (
        "Free some space or check the disk, then run the same command again: "
        "it goes on where it stopped."
    )


def write_all(descriptor: int, buffers: Sequence[memoryview]) -> None:
    """Write ``buffers`` of bytes one after another; the kernel may take less than it is given."""
    waiting = deque(buffers)
    while waiting:
        count = writev(descriptor, list(islice(waiting, MAX_BUFFERS_PER_WRITE)))
        while waiting and count >= waiting[0].nbytes:
            count -= waiting.popleft().nbytes
        if count:
            waiting[0] = waiting[0][count:]


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each flushed into the folder that names it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def leftovers(root: Path) -> Iterator[Path]:
    """Temporary files below ``root`` that a killed writer left behind."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if name.endswith(TEMPORARY_SUFFIX))


def _forget(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return  # the disk that refused the write may refuse this too; the next writer reuses it
