"""Tars from afar on their way through: downloaded ahead of their images, gone when these are read.

The files have no name, so they vanish with the process however it ends; there are never more than
``limit``. Which images will be read is known from the index, in order, so that a tar is fetched
before its first image is asked for and dropped after its last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from ..local_files import read_bytes_at

NUM_DOWNLOADS = 4
"""At a time; more share the same line."""


@dataclass(slots=True)
class _Tar:
    file: Future[BinaryIO]
    readers: int = 0


class DownloadBuffer:
    """At most ``limit`` downloaded tars."""

    def __init__(self, download: Callable[[str], BinaryIO], limit: int) -> None:
        self._download, self._limit = download, limit
        self._lock = threading.Lock()
        self._tars: dict[str, _Tar] = {}
        self._left: dict[str, set[int]] = {}
        """Offsets of the images that are still to be read, by tar."""
        self._waiting: deque[str] = deque()
        self._closed = False
        self._pool = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="download")

    def adopt(self, uri: str, file: BinaryIO) -> bool:
        """Keep a tar that is here already; False when there is no room."""
        with self._lock:
            if self._closed or uri in self._tars or len(self._tars) >= self._limit:
                return False
            done: Future[BinaryIO] = Future()
            done.set_result(file)
            self._tars[uri] = _Tar(done)
            return True

    def expect(self, reads: Iterable[tuple[str, int]]) -> None:
        """These images (tar, offset) will be read, about in this order."""
        with self._lock:
            self._left = {}
            for uri, offset in reads:
                self._left.setdefault(uri, set()).add(offset)
            for uri, tar in list(self._tars.items()):
                if tar.file.done() and tar.file.exception() is not None:
                    del self._tars[uri]  # it gets another chance
            self._waiting = deque(uri for uri in self._left if uri not in self._tars)
            self._fetch()

    def read(self, uri: str, offset: int, length: int) -> bytes | None:
        """The bytes, when the tar is here or on its way; None when it is neither."""
        with self._lock:
            tar = self._tars.get(uri)
            if tar is None:
                return None
            tar.readers += 1
        try:
            return read_bytes_at(tar.file.result().fileno(), offset, length)
        finally:
            with self._lock:
                tar.readers -= 1
                self._left.get(uri, set()).discard(offset)
                self._fetch()

    def close(self) -> None:
        """Drop everything; what is being downloaded must have been told to stop. A tar that is
        being read goes with its last reader."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            self._fetch()

    def _fetch(self) -> None:
        """Drop what is read to its end, and begin with what comes next; before anything is
        expected, everything is kept."""
        for uri in list(self._tars):
            if self._closed or (self._left and not self._left.get(uri)):
                self._drop(uri)
        while self._waiting and len(self._tars) < self._limit:
            uri = self._waiting.popleft()
            if self._left.get(uri):
                self._tars[uri] = _Tar(self._pool.submit(self._download, uri))

    def _drop(self, uri: str) -> None:
        tar = self._tars.get(uri)
        # A failed download stays: whoever asks for its images is told why.
        if tar is None or tar.readers or not tar.file.done():
            return
        if not tar.file.cancelled() and tar.file.exception() is None:
            tar.file.result().close()
            del self._tars[uri]
