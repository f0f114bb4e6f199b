"""Images in tars that cannot be read in place: on a web server, an object store, or compressed.

A tar is fetched (downloaded, unpacked) once to be listed when a cache is made, and once when its
images are wanted, into a bounded buffer; few images, as for a comparison, are read by ranges. Rows
of a new cache are in a windowed order: the tars in random order, in windows of ``window_tars``, and
the images of a window permuted. The index holds that order like any other.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phistill.errors import SourceError, UsageError

from ..local_files import read_bytes_at
from ..order import windowed
from ..source import (
    DEFAULTS,
    NOTHING,
    SUFFIXES,
    ImageSource,
    SourceOptions,
    left_out_text,
    refuse_duplicates,
)
from ..splits import splits_of_files
from .compressed_files import CompressedFiles
from .download_buffer import NUM_DOWNLOADS, DownloadBuffer
from .members import Member, members_of
from .remote_files import (
    HTTP_SCHEMES,
    OBJECT_SCHEMES,
    DiskRefused,
    RemoteFiles,
    remote_files,
    shown,
)
from .samples import Sample, samples_of, table_of


class FetchedTarSource(ImageSource):
    """Every image in some tars, which ``files`` fetch."""

    kind = "tar"
    slow_to_list = True

    def __init__(
        self,
        places: Mapping[str, str],
        files: RemoteFiles,
        options: SourceOptions = DEFAULTS,
        beside: Mapping[str, int] = NOTHING,
    ) -> None:
        """``places`` are URLs or paths by uri; ``beside`` is what else lies there."""
        self._places, self._files, self.options, self._beside = places, files, options, beside
        self._limit = 2 * options.window_tars
        self._buffer = DownloadBuffer(self._fetch, self._limit)

    @classmethod
    def of_urls(
        cls,
        urls: Sequence[str],
        options: SourceOptions = DEFAULTS,
        files: RemoteFiles | None = None,
    ) -> FetchedTarSource:
        """Tars from afar."""
        names = _names(urls)
        refuse_duplicates(names, "the list of tars")
        places = dict(zip(names, urls, strict=True))
        return cls(places, files or remote_files(urls[0]), options)

    @classmethod
    def of_compressed(
        cls,
        root: Path,
        tars: Sequence[str],
        options: SourceOptions = DEFAULTS,
        beside: Mapping[str, int] = NOTHING,
    ) -> FetchedTarSource:
        """Compressed tars, by their paths below ``root``."""
        places = {tar: str(root / tar) for tar in tars}
        return cls(places, CompressedFiles(), options, beside)

    def records(self) -> pa.Table:
        self.left_out = left_out = Counter(self._beside)
        pool = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="list")
        try:
            listed = list(pool.map(self._list, self._places))
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        for _, beside in listed:
            left_out.update(beside)
        tars = dict(zip(self._places, [samples for samples, _ in listed], strict=True))
        if not any(tars.values()):
            raise UsageError(
                f"the tars hold no image ({', '.join(sorted(SUFFIXES))}). "
                f"{left_out_text(left_out)}".rstrip()
            )
        return table_of(tars, splits_of_files(list(self._places)))

    def order(self, records: pa.Table, generator: np.random.Generator) -> NDArray[np.int64]:
        """Tars in random order, then the images of each ``window_tars`` of them."""
        tars = records["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
        sizes = np.ones(int(tars.max()) + 1, np.int64)
        return windowed(generator, tars, sizes, self.options.window_tars)

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

    def _list(self, uri: str) -> tuple[list[Sample], Counter[str]]:
        file = self._fetch(uri)
        try:
            size = os.fstat(file.fileno()).st_size
            where = shown(self._url(uri))
            inside = list(members_of(file, size, where, self.options.allow_cut_tars))
            left_out = Counter[str]()
            descriptor = file.fileno()

            def read(member: Member) -> bytes:
                return read_bytes_at(descriptor, member.offset, member.length)

            samples = samples_of(uri, inside, read, self.options, left_out)
            if len(self._places) <= self._limit and self._buffer.adopt(uri, file):
                file = cast(BinaryIO, None)  # all fit: nothing is downloaded twice
            return samples, left_out
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
        if uri not in self._places:
            raise SourceError(
                f"the cache has images of {uri}, which is not among the {len(self._places)} tars "
                "given. Give all of them."
            )
        return self._places[uri]


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
