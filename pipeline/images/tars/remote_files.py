"""Reading files from a web server or an object store: whole into a file, or a range of bytes.

A request that is refused for now (408, 429, 5xx), a connection that breaks and a body that ends too
early are tried again, going on where they broke off; what lasts is a SourceError, never a bad
image. No credential is part of a message: what stands before ``@`` and after ``?`` is left out.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from phistill.errors import SourceError, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
HTTP_SCHEMES = ("http", "https")
NUM_TRIES = 6
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 8.0
"""Waits double up to this: a server that is restarted is met again, within half a minute."""

TIMEOUT_S = 8.0
"""Silence that counts as a broken connection; also the longest that a stopped run waits for one."""

PART = 2**20
AGAIN = (408, 425, 429, 500, 502, 503, 504)


class RemoteFiles(Protocol):
    """Files by URL, or another place that is read from its beginning."""

    def download(self, url: str, file: BinaryIO) -> None:
        """Write the whole content; SourceError when it cannot be had."""
        ...

    def read(self, url: str, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer where the file ends."""
        ...

    def stop(self) -> None:
        """End what is being read; later calls raise SourceError."""
        ...


def remote_files(url: str) -> RemoteFiles:
    """What reads URLs of this kind."""
    return WebFiles() if urlsplit(url).scheme in HTTP_SCHEMES else ObjectFiles()


def shown(url: str) -> str:
    """A URL for a message or an id: without credentials and query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class DiskRefused(Exception):
    """The disk that a download goes to refused it; the message says why."""


class _Passing(Exception):
    """A failure that may pass; the message says which."""


class WebFiles:
    """Files of a web server, by GET with ranges where it takes them."""

    def __init__(self, first_wait_s: float = FIRST_WAIT_S) -> None:
        self._stopped = threading.Event()
        self._first_wait_s = first_wait_s

    def download(self, url: str, file: BinaryIO) -> None:
        done, etag = 0, ""

        def go_on() -> bool:
            nonlocal done, etag
            before = done
            # Should the file have changed, the server sends all of the new one.
            headers = {"Range": f"bytes={done}-", "If-Range": etag} if done and etag else {}
            with _get(url, headers) as answer:
                if answer.status != 206:
                    done = 0
                    file.seek(0)
                    file.truncate()
                etag = answer.headers.get("ETag", "")
                stated = answer.headers.get("Content-Length")
                total = None if stated is None else done + int(stated)
                while part := self._part(answer, PART):
                    write(file, part)
                    done += len(part)
            if total is not None and done < total:
                raise _Passing(f"the body ended after {done:,} of {total:,} bytes")
            return done > before

        self._retried(url, go_on, lambda: done)

    def read(self, url: str, offset: int, length: int) -> bytes:
        data = bytearray()

        def go_on() -> bool:
            start = offset + len(data)
            headers = {"Range": f"bytes={start}-{offset + length - 1}"}
            with _get(url, headers) as answer:
                if answer.status != 206:  # the server sends everything: pass over what is before
                    skip = start
                    while skip and (part := self._part(answer, min(PART, skip))):
                        skip -= len(part)
                while len(data) < length:
                    part = self._part(answer, min(PART, length - len(data)))
                    if not part:
                        break
                    data.extend(part)
            stated = int(answer.headers.get("Content-Length") or 0)
            came = offset + len(data) - (start if answer.status == 206 else 0)
            if len(data) < length and came < stated:
                raise _Passing(f"the body ended after {len(data):,} of {length:,} bytes")
            return True

        if length:
            self._retried(url, go_on, lambda: len(data))
        return bytes(data)

    def stop(self) -> None:
        self._stopped.set()

    def _part(self, answer: Any, num_bytes: int) -> bytes:
        if self._stopped.is_set():
            raise SourceError("reading was stopped.")
        return answer.read(num_bytes)

    def _retried(self, url: str, go_on: Callable[[], bool], progress: Callable[[], int]) -> None:
        tries, wait_s = 0, self._first_wait_s
        while True:
            before = progress()
            try:
                go_on()
                return
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                if error.code == 416:
                    return  # nothing is left behind the offset
                if error.code not in AGAIN:
                    raise SourceError(
                        f"{shown(url)} cannot be read: {reason}. Check the address"
                        + (" and what may read it." if error.code in (401, 403) else ".")
                    ) from None
            except (_Passing, urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            if progress() > before:
                tries, wait_s = 0, self._first_wait_s
            tries += 1
            if tries == NUM_TRIES:
                raise SourceError(
                    f"{shown(url)} cannot be read ({reason}), tried {NUM_TRIES} times. Nothing was "
                    "recorded for it; run the same command again when the server answers."
                )
            log.debug("%s not read, trying again in %g s: %s", shown(url), wait_s, reason)
            if self._stopped.wait(wait_s):
                raise SourceError("reading was stopped.")
            wait_s = min(2 * wait_s, MAX_WAIT_S)


def write(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise DiskRefused(error.strerror or str(error)) from error


def _get(url: str, headers: dict[str, str]) -> Any:
    assert urlsplit(url).scheme in HTTP_SCHEMES, "no file:// or ftp:// comes here"
    request = urllib.request.Request(url, headers={"User-Agent": "phistill", **headers})  # noqa: S310
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310


class ObjectFiles:
    """Files of an object store (S3, GCS, Azure), through obstore, which retries by itself too."""

    def __init__(self, open_store: Callable[[str], ObjectStore] | None = None) -> None:
        from phistill.cache.storage.objects import client

        self._open = open_store or client.open_store
        self._attempt = client.attempt
        self._stores: dict[str, ObjectStore] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def download(self, url: str, file: BinaryIO) -> None:
        import obstore

        store, path = self._store(url)
        size = self._ask(url, lambda: int(obstore.head(store, path)["size"]))
        for start in range(0, size, 8 * PART):
            if self._stopped.is_set():
                raise SourceError("reading was stopped.")
            length = min(8 * PART, size - start)
            write(file, self.read(url, start, length))

    def read(self, url: str, offset: int, length: int) -> bytes:
        import obstore

        store, path = self._store(url)

        def call() -> bytes:
            return obstore.get_range(store, path, start=offset, length=length).to_bytes()

        return self._ask(url, call) if length else b""

    def stop(self) -> None:
        self._stopped.set()

    def _store(self, url: str) -> tuple[ObjectStore, str]:
        folder, _, name = url.rpartition("/")
        with self._lock:
            if folder not in self._stores:
                self._stores[folder] = self._open(folder)
            return self._stores[folder], name

    def _ask(self, url: str, call: Callable[[], Any]) -> Any:
        try:
            return self._attempt("read", shown(url), call)
        except UsageError:
            raise
        except FileNotFoundError:
            raise SourceError(f"{shown(url)} does not exist. Check the address.") from None
        except OSError as error:  # StoreError is one; its text says what to do
            raise SourceError(error.strerror or str(error)) from error
