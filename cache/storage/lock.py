"""Who may write what in a cache: locks that end with their process, a byte for each shard.

The lock of byte k of ``.lock`` is the right to write shard k; teachers, segments, removals and
statistics need all of them. They are locks of the open file description (fcntl(2)), so the kernel,
or the server of a network file system, frees them however the process ends, and two threads are
two writers. A system without them locks the file as a whole: one writer at a time.

A writer also locks a slot, a byte behind those of the shards, and tells who it is in the slot's
line of the file. The line of a slot that nobody has locked means nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import gcd
from pathlib import Path

from phistill.errors import LockHeld, PhistillError, ReadOnlyPlace

from ..format import names

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FIRST_SLOT = 2**40
"""Behind every shard there can be."""
MAX_WRITERS = 2**12
LINE_BYTES = 512
"""Of a slot: a host's name has at most 253 letters."""

AVAILABLE = fcntl is not None
"""Whether this system has locks at all."""

_BYTE_LOCKS = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
_FLOCK = struct.Struct("hhqqi")  # l_type, l_whence, l_start, l_len, l_pid of Linux's struct flock


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that is writing."""

    pid: int
    host: str
    shards: range | None
    """All of its shards are among these; None for everything."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def may_hold(self, shard: int) -> bool:
        """Whether a shard is among what it may write."""
        return self.shards is None or shard in self.shards


@contextmanager
def writing(root: Path, shards: Sequence[int] | None = None) -> Iterator[None]:
    """Hold ``shards`` of a cache for writing, or everything; LockHeld names who has some of it.

    A change of the cache's structure needs everything. Raises ReadOnlyPlace where the cache may
    only be read, PhistillError where the file system has no locks.
    """
    if not AVAILABLE:
        raise PhistillError(
            f"{root} cannot be written here: this system ({sys.platform}) has no file locks "
            "(fcntl), so two writers would not see each other. Write on Linux or macOS, in WSL, or "
            "to an object store. What is finished can be read, evaluated and exported here."
        )
    path = root / names.LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if not (root / names.ROOT).exists():
            raise ReadOnlyPlace(
                f"{root} cannot be made or written ({error.strerror}). Choose another place."
            ) from error
        raise ReadOnlyPlace(
            f"{root} cannot be written ({error.strerror}), and this changes it. Make it writable, "
            f"or work on a copy: `phistill stage {root} DEST`."
        ) from error
    try:
        slot = _take_slot(descriptor, path, shards)
        try:
            for start, num_bytes in _spans(shards):
                if not _lock(descriptor, path, start, num_bytes):
                    first = None if shards is None else _first_held(descriptor, start, num_bytes)
                    raise LockHeld(_refusal(descriptor, root, first))
            yield
        finally:
            _write_line(descriptor, slot, "")
    finally:
        os.close(descriptor)


def holders(root: Path) -> tuple[Holder, ...]:
    """The processes that are writing now; none where the system has no locks."""
    if not AVAILABLE:
        return ()
    try:
        descriptor = os.open(root / names.LOCK, os.O_RDONLY)
    except OSError:
        return ()
    try:
        return _holders(descriptor)
    finally:
        os.close(descriptor)


def _spans(shards: Sequence[int] | None) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of the runs of consecutive shards."""
    if shards is None or not _BYTE_LOCKS:
        yield 0, FIRST_SLOT
        return
    start = stop = -1
    for shard in sorted(set(shards)):
        if shard != stop:
            if stop > start:
                yield start, stop - start
            start = shard
        stop = shard + 1
    if stop > start:
        yield start, stop - start


def _lock(descriptor: int, path: Path, start: int, num_bytes: int) -> bool:
    """Lock bytes of the file if nobody else has any of them."""
    try:
        if _BYTE_LOCKS:
            request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, num_bytes, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise PhistillError(
            f"{path} cannot be locked ({error.strerror}), so two writers would not see each other. "
            "Mount the file system with locks (Lustre: -o flock), or write to another one."
        ) from error
    return True


def _first_held(descriptor: int, start: int, num_bytes: int) -> int | None:
    """The first of these bytes that another writer has locked."""
    if not _BYTE_LOCKS:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return start
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return None
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, num_bytes, 0)
    kind, _, first, _, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request))
    return None if kind == fcntl.F_UNLCK else max(first, start)


def _take_slot(descriptor: int, path: Path, shards: Sequence[int] | None) -> int:
    """The first free slot, its line filled in before any shard is locked."""
    for slot in range(MAX_WRITERS if _BYTE_LOCKS else 1):
        if _lock(descriptor, path, FIRST_SLOT + slot, 1):
            held = None if shards is None else progression(shards)
            line = {"pid": os.getpid(), "host": socket.gethostname(), "shards": held}
            _write_line(descriptor, slot, json.dumps(line))
            return slot
    raise LockHeld(_refusal(descriptor, path.parent, None))


def progression(shards: Sequence[int]) -> list[int]:
    """[start, stop, step] of the smallest range that holds all of ``shards``."""
    if not shards:
        return [0, 0, 1]
    first, last = min(shards), max(shards)
    step = gcd(*(shard - first for shard in shards)) or 1
    return [first, last + 1, step]


def _write_line(descriptor: int, slot: int, text: str) -> None:
    # A disk that is full or gone: the lock counts, the line only names its holder.
    with suppress(OSError):
        os.pwrite(descriptor, f"{text:{LINE_BYTES - 1}}\n".encode(), slot * LINE_BYTES)


def _holders(descriptor: int) -> tuple[Holder, ...]:
    """Of the slots that other descriptions of this file have locked."""
    num_lines = -(-os.fstat(descriptor).st_size // LINE_BYTES)
    living = []
    for slot in range(min(num_lines, MAX_WRITERS)):
        if _first_held(descriptor, FIRST_SLOT + slot, 1) is None:
            continue
        try:
            line = json.loads(os.pread(descriptor, LINE_BYTES, slot * LINE_BYTES))
            shards = None if line["shards"] is None else range(*line["shards"])
            living.append(Holder(int(line["pid"]), str(line["host"]), shards))
        except (ValueError, KeyError, TypeError):
            continue  # it has just been locked, and is not filled in yet
    return tuple(living)


def _refusal(descriptor: int, root: Path, shard: int | None) -> str:
    """What LockHeld says: who has everything, or ``shard``."""
    writers = [str(h) for h in _holders(descriptor) if shard is None or h.may_hold(shard)]
    who = (
        " and ".join([*writers[:3], *(["others"] if len(writers) > 3 else [])]) or "another process"
    )
    if shard is None:
        return f"{root} is being written by {who}. Wait for it, stop it, or choose another place."
    return (
        f"{root}: shard {shard} is being written by {who}. "
        "Wait for it, stop it, or take other shards."
    )
