"""Compressed tars on a disk, unpacked from their beginning: there is no way into their middle."""

from __future__ import annotations

import bz2
import gzip
import lzma
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from phistill.errors import SourceError

from .remote_files import write

PART = 2**20
ERRORS = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)


class CompressedFiles:
    """gzip, bzip2, xz and zstd, by the first bytes."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def download(self, url: str, file: BinaryIO) -> None:
        with _opened(url) as stream:
            while part := self._part(stream, PART):
                write(file, part)

    def read(self, url: str, offset: int, length: int) -> bytes:
        data = bytearray()
        with _opened(url) as stream:
            while offset and (part := self._part(stream, min(PART, offset))):
                offset -= len(part)
            while len(data) < length and (part := self._part(stream, length - len(data))):
                data += part
        return bytes(data)

    def stop(self) -> None:
        self._stopped.set()

    def _part(self, stream: Any, num_bytes: int) -> bytes:
        if self._stopped.is_set():
            raise SourceError("reading was stopped.")
        return stream.read(num_bytes)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        with _unpacking(path, head) as stream:
            yield stream
    except FileNotFoundError:
        raise SourceError(
            f"{path} is in the index and is gone. Put it back, or name the source that has it."
        ) from None
    except SourceError:
        raise
    except ERRORS as error:
        raise SourceError(
            f"{path} cannot be unpacked ({error or type(error).__name__}). Get the file again; "
            "nothing was recorded for its images."
        ) from error


def _unpacking(path: str, head: bytes) -> Any:
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh"):
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return pa.CompressedInputStream(pa.OSFile(path), "zstd")
    return Path(path).open("rb")  # named so, and a plain tar: downloads are unpacked on the way
