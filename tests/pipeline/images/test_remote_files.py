"""A file on a server or in an object store is read to its end, or the run hears why not."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from phistill.errors import SourceError
from phistill.pipeline.images.tars import remote_files as remote
from phistill.pipeline.images.tars.remote_files import ObjectFiles, WebFiles
from tests.pipeline.tar_server import TARS, Server


def test_a_server_without_ranges_is_read_all_the_same(server: Server) -> None:
    server.takes_ranges = False
    path, body = next(iter(TARS.items()))
    server.faults[path] = ["cut", "503"]
    sink = io.BytesIO()
    WebFiles().download(server.url(path), sink)
    assert sink.getvalue() == body
    assert WebFiles().read(server.url(path), 700, 50) == body[700:750]


def test_a_range_that_is_cut_goes_on_and_one_beyond_the_end_is_short(server: Server) -> None:
    path, body = next(iter(TARS.items()))
    server.faults[path] = ["cut", "503", "cut"]
    assert WebFiles().read(server.url(path), 100, 3000) == body[100:3100]
    assert WebFiles().read(server.url(path), len(body) - 5, 10) == body[-5:]
    assert WebFiles().read(server.url(path), 3, 0) == b""


def test_an_object_store_is_read_like_a_server() -> None:
    obstore = pytest.importorskip("obstore")
    store = obstore.store.MemoryStore()
    path, body = next(iter(TARS.items()))
    obstore.put(store, Path(path).name, body)
    files = ObjectFiles(lambda folder: store)
    sink = io.BytesIO()
    files.download(f"s3://bucket{path}", sink)
    assert sink.getvalue() == body
    assert files.read(f"s3://bucket{path}", 512, 100) == body[512:612]
    with pytest.raises(SourceError, match=r"s3://bucket/data/none.tar does not exist"):
        files.download("s3://bucket/data/none.tar", sink)


def test_a_download_that_hangs_ends_when_the_run_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    path = next(iter(TARS))
    server.faults[path] = ["stall"] * 100
    files, failures = WebFiles(), list[BaseException]()

    def download() -> None:
        try:
            files.download(server.url(path), io.BytesIO())
        except SourceError as error:
            failures.append(error)

    thread = threading.Thread(target=download)
    thread.start()
    server.stalled.wait(10)
    files.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert failures
    server.go_on.set()
