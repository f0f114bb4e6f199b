"""Images in tars on a web server or an object store, as WebDataset shards lie there.

A tar is downloaded once to be listed when a cache is made, and once when its images are wanted,
into a bounded buffer; few images, as for a comparison, are read by ranges. Rows of a new cache are
in a windowed order: the tars in random order, in windows of ``window_tars``, and the images of a
window permuted. The index holds that order like any other.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from phistill.errors import SourceError, UsageError

from .download_buffer import NUM_DOWNLOADS, DownloadBuffer
from .local_files import read_bytes_at
from .remote_files import (
    HTTP_SCHEMES,
    OBJECT_SCHEMES,
    DiskRefused,
    RemoteFiles,
    remote_files,
    shown,
)
from .source import SUFFIXES, ImageRecord, ImageSource, refuse_duplicates
from .tar import WHOLE_TARS, TarRules, members_of, records_of

WINDOW_TARS = 8
"""Tars whose images are mixed; twice as many are on the disk at most."""


class RemoteTarSource(ImageSource):
    """Every image in some tars, by URL."""

    kind = "remote tar"
    slow_to_list = True

    def __init__(
        self,
        urls: Sequence[str],
        window_tars: int = WINDOW_TARS,
        files: Callable[[str], RemoteFiles] = remote_files,
        rules: TarRules = WHOLE_TARS,
    ) -> None:
        if window_tars < 1:
            raise UsageError(f"--window {window_tars} must be positive.")
        names = _names(urls)
        refuse_duplicates(names, "the list of tars")
        self._urls = dict(zip(names, urls, strict=True))
        self.window, self._rules = window_tars, rules
        self._files = files(urls[0])
        self._limit = 2 * window_tars
        self._buffer = DownloadBuffer(self._fetch, self._limit)

    def records(self) -> list[ImageRecord]:
        self.left_out = left_out = Counter[str]()
        pool = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="list")
        try:
            listed = list(pool.map(self._list, self._urls))
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        records = [record for tar, _ in listed for record in tar]
        for _, beside in listed:
            left_out.update(beside)
        if not records:
            raise UsageError(f"the tars hold no image ({', '.join(sorted(SUFFIXES))}).")
        return records

    def read(self, uri: str, offset: int, length: int) -> bytes:
        data = self._buffer.read(uri, offset, length)
        if data is None:
            data = self._files.read(self._url(uri), offset, length)
        if len(data) < length:
            raise SourceError(
                f"{shown(self._url(uri))} ends {length - len(data):,} bytes before the image at "
                f"{offset:,} does. It changed after it was listed; put the old one back, or make a "
                "new cache."
            )
        return data

    def expect(self, reads: Iterable[tuple[str, int]]) -> None:
        """Their tars are fetched ahead."""
        self._buffer.expect(reads)

    def stop(self) -> None:
        self._files.stop()

    def close(self) -> None:
        """Stop, and drop what was downloaded."""
        self.stop()
        self._buffer.close()

    def _list(self, uri: str) -> tuple[list[ImageRecord], Counter[str]]:
        file = self._fetch(uri)
        try:
            size = os.fstat(file.fileno()).st_size
            members = list(members_of(file, size, shown(self._url(uri)), self._rules))
            left_out = Counter[str]()
            records = records_of(
                uri,
                members,
                lambda m: read_bytes_at(file.fileno(), m.offset, m.length),
                self._rules,
                left_out,
            )
            if len(self._urls) <= self._limit and self._buffer.adopt(uri, file):
                file = cast(BinaryIO, None)  # all fit: nothing is downloaded twice
            return records, left_out
        finally:
            if file is not None:
                file.close()

    def _fetch(self, uri: str) -> BinaryIO:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        try:
            self._files.download(self._url(uri), file)
        except DiskRefused as error:
            file.close()
            raise SourceError(
                f"{shown(self._url(uri))} cannot be kept in {tempfile.gettempdir()} "
                f"({error}). Up to {self._limit} tars are there at a time: free some "
                "space, set TMPDIR to a larger disk, or give a smaller --window."
            ) from error
        except BaseException:
            file.close()
            raise
        return file

    def _url(self, uri: str) -> str:
        if uri not in self._urls:
            raise SourceError(
                f"the cache has images of {uri}, which is not among the {len(self._urls)} tars "
                "given. Give all of them."
            )
        return self._urls[uri]


def is_remote(text: str) -> bool:
    """Whether a text is a URL that can be read here, or wants to be one."""
    scheme, sign, _ = text.partition("://")
    return bool(sign) and scheme.isalnum()


def check_urls(urls: Sequence[str]) -> list[str]:
    """UsageError unless all are tars on servers of one kind."""
    for url in urls:
        if urlsplit(url).scheme not in (*HTTP_SCHEMES, *OBJECT_SCHEMES):
            raise UsageError(
                f"{shown(url)} cannot be read: give https://, http://, s3://, gs:// or az://."
            )
        if not urlsplit(url).path.endswith(".tar"):
            raise UsageError(
                f"{shown(url)} is no tar: from afar only .tar files are read (not compressed). "
                "Download anything else first."
            )
    if len({urlsplit(url).scheme in HTTP_SCHEMES for url in urls}) > 1:
        raise UsageError("tars of a web server and of an object store cannot be mixed.")
    return list(urls)


def _names(urls: Sequence[str]) -> list[str]:
    """The files' names; with their folders where names repeat. No host, no query: a mirror or a new
    signature is the same source."""
    paths = [urlsplit(url).path.lstrip("/") for url in urls]
    short = [path.rpartition("/")[2] for path in paths]
    return short if len(set(short)) == len(set(paths)) else paths
