"""One writer per cache: an advisory lock that dies with its process.

``flock`` on ``.lock`` is released by the kernel however the process ends, so a killed writer never
leaves a cache locked. The file's content only tells a person who holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import names
from .errors import LockHeld


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold the cache for writing; LockHeld names the process and host that has it."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / names.LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            raise LockHeld(
                f"{root} is being written by {holder}. Wait for it, stop it, or use another cache."
            ) from error
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner, 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
