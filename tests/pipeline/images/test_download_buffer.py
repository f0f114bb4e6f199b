"""Of tars from afar no more than two windows lie on the disk, and rows mix within a window."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from phistill.pipeline import ExtractOptions, extract
from phistill.pipeline.images.source import SourceOptions
from phistill.pipeline.images.tars.download_buffer import DownloadBuffer
from phistill.pipeline.images.tars.fetched_tar import FetchedTarSource
from phistill.pipeline.index import build_index
from tests.pipeline.images.listed import listed
from tests.pipeline.tar_server import PATTERN, SETTINGS, TARS, Server


def test_a_spool_forgets_a_tar_after_its_last_image() -> None:
    dropped: list[str] = []

    def download(uri: str) -> Any:
        import tempfile

        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(uri.encode() * 4)
        file.flush()
        dropped.append(uri)
        return file

    spool = DownloadBuffer(download, limit=2)
    reads = [(uri, offset) for uri in "abcd" for offset in (0, 2)]
    spool.expect(reads)
    for uri, offset in reads:
        data = spool.read(uri, offset, 2)
        assert data == uri.encode() * 2
        assert len(spool._tars) <= 2
    assert sorted(dropped) == ["a", "b", "c", "d"]
    assert not spool._tars
    assert spool.read("a", 0, 2) is None
    spool.close()


def test_a_window_mixes_its_tars_and_no_others(server: Server, tmp_path: Path) -> None:
    source = FetchedTarSource.of_urls(
        [server.url(path) for path in TARS], SourceOptions(window_tars=2)
    )
    entries = source.records()
    index = build_index(entries, num_views=1, seed=1, source=source).to_pydict()
    assert sorted(index["id"]) == sorted(entries["id"].to_pylist())
    windows = [index["uri"][start : start + 10] for start in range(0, 30, 10)]
    assert [len(set(uris)) for uris in windows] == [2, 2, 2]
    assert len(set(map(frozenset, windows))) == 3
    assert any(uris != sorted(uris) for uris in windows)
    assert index == build_index(entries, num_views=1, seed=1, source=source).to_pydict()
    assert index != build_index(entries, num_views=1, seed=2, source=source).to_pydict()
    source.close()


def test_the_window_reaches_a_cache(server: Server, tiny: str, tmp_path: Path) -> None:
    cache = extract(
        server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS,
        options=ExtractOptions(source=SourceOptions(window_tars=1)),
    ).cache  # fmt: skip
    uris = cache.index()["uri"].to_pylist()
    assert [len(set(uris[start : start + 5])) for start in range(0, 30, 5)] == [1] * 6


def test_no_more_tars_than_two_windows_are_on_the_disk(
    server: Server, tiny: str, tmp_path: Path
) -> None:
    here: list[int] = []

    class Watched(FetchedTarSource):
        def read(self, uri: str, offset: int, length: int) -> bytes:
            here.append(len(self._buffer._tars))
            return super().read(uri, offset, length)

    source = Watched.of_urls([server.url(path) for path in TARS], SourceOptions(window_tars=1))
    # One reader: another one, ahead of it, may ask for a third tar while two are here.
    options = ExtractOptions(num_workers=1)
    extract(source, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    assert max(here) == 2
    # Once to be listed, once to be read, and nothing by ranges: the order was known.
    assert server.whole == Counter(dict.fromkeys(TARS, 2))
    assert not server.ranges
    assert not source._buffer._tars
    source.close()


def test_images_out_of_order_are_read_by_ranges(server: Server) -> None:
    source = FetchedTarSource.of_urls(
        [server.url(path) for path in TARS], SourceOptions(window_tars=1)
    )
    entries = listed(source)
    source.expect([(entries[0].uri, entries[0].offset)])
    last = entries[-1]
    data = source.read(last.uri, last.offset, last.length)
    path = f"/data/{last.uri}"
    assert data == TARS[path][last.offset : last.offset + last.length]
    assert server.ranges == {path: 1}
    source.close()
