"""Tars on a server are read like tars on a disk, whatever the server does in between."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phistill.cache.errors import SourceError, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract, open_source
from phistill.pipeline import remote_files as remote
from phistill.pipeline.braces import expand
from phistill.pipeline.index import build_index
from phistill.pipeline.remote_files import ObjectFiles, WebFiles, shown
from phistill.pipeline.remote_tar_source import RemoteTarSource
from phistill.pipeline.spool import Spool

NUM_TARS, IMAGES_PER_TAR = 6, 5
SETTINGS = CacheSettings(pixel_size=0, shard_rows=8, seed=3)


def tar(number: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for image in range(IMAGES_PER_TAR):
            pixels = np.random.default_rng([number, image]).integers(0, 256, (20, 24, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            for name, body in (
                (f"{number}-{image}.png", data.getvalue()),
                (f"{number}-{image}.cls", str(number % 2).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return sink.getvalue()


TARS = {f"/data/shard-{number:04d}.tar": tar(number) for number in range(NUM_TARS)}


class Server(ThreadingHTTPServer):
    """Serves TARS with ranges, and misbehaves as told: ``faults`` holds, per path, what to do
    to its next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list[str]] = {}
        self.whole: Counter[str] = Counter()
        self.ranges: Counter[str] = Counter()
        self.bodies = dict(TARS)
        self.takes_ranges = True
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.server.faults.get(path, [])
        what = fault.pop(0) if fault else ""
        body = self.server.bodies.get(path)
        if what.isdigit() or body is None:
            self.send_error(int(what or 404))
            return
        start, stop, status = 0, len(body), 200
        asked = self.headers.get("Range")
        if asked and self.server.takes_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or stop) + 1, stop), 206
        (self.server.ranges if asked else self.server.whole)[path] += 1
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if what == "stall":
            self.server.stalled.set()
            self.server.go_on.wait(30)
            return
        self.wfile.write(body[start : start + 700] if what == "cut" else body[start:stop])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(WebFiles.__init__, "__defaults__", (0.01,))
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "tars").mkdir()
    for path, body in TARS.items():
        (tmp_path / "tars" / Path(path).name).write_bytes(body)
    return tmp_path / "tars"


PATTERN = "/data/shard-{0000..0005}.tar"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-{0..3}.tar", ["a-0.tar", "a-1.tar", "a-2.tar", "a-3.tar"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_stand_for_many_names(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize("text", ["{3..1}", "{a..c}", "{}", "{0..99999999}"])
def test_braces_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        expand(text)


def test_a_server_lists_what_a_folder_does(server: Server, local: Path) -> None:
    source = open_source(server.url(PATTERN))
    entries = source.entries()
    assert entries == open_source(local).entries()
    assert entries == open_source(str(local / "shard-{0000..0005}.tar")).entries()
    assert entries[0].label == "0"
    source.close()  # type: ignore[attr-defined]


def test_a_text_file_may_list_tars_here_or_there(server: Server, local: Path) -> None:
    (local / "here.txt").write_text("# all\nshard-{0000..0001}.tar\nshard-0005.tar\n")
    (local / "there.txt").write_text(server.url("/data/shard-{0000..0001}.tar") + "\n")
    assert len(open_source(local / "here.txt").entries()) == 3 * IMAGES_PER_TAR
    source = open_source(local / "there.txt")
    assert isinstance(source, RemoteTarSource)
    assert len(source.entries()) == 2 * IMAGES_PER_TAR
    source.close()


def test_an_extraction_from_afar_holds_the_features_of_its_own_images(
    server: Server, local: Path, tiny: str, tmp_path: Path
) -> None:
    far = extract(server.url(PATTERN), tmp_path / "far", [f"t={tiny}"], settings=SETTINGS).cache
    near = extract(local, tmp_path / "near", [f"t={tiny}"], settings=SETTINGS).cache
    found = {}
    for cache in (far, near):
        ids = dict(zip(*(cache.index()[name].to_pylist() for name in ("row", "id")), strict=True))
        values = cache.reader("t", "patches").read(rows := cache.rows(split="all"))
        found[cache.location] = {ids[row]: v for row, v in zip(rows.tolist(), values, strict=True)}
    one, other = found.values()
    assert len(one) == NUM_TARS * IMAGES_PER_TAR
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    # All tars fit into the spool: each is downloaded once, to be listed, and read from there.
    assert server.whole == Counter(dict.fromkeys(TARS, 1))
    assert not server.ranges


def test_a_window_mixes_its_tars_and_no_others(server: Server, tmp_path: Path) -> None:
    source = RemoteTarSource([server.url(path) for path in TARS], window_tars=2)
    entries = source.entries()
    index = build_index(entries, num_views=1, seed=1, window=2).to_pydict()
    assert sorted(index["id"]) == sorted(entry.id for entry in entries)
    windows = [index["uri"][start : start + 10] for start in range(0, 30, 10)]
    assert [len(set(uris)) for uris in windows] == [2, 2, 2]
    assert len(set(map(frozenset, windows))) == 3
    assert any(uris != sorted(uris) for uris in windows)
    assert index == build_index(entries, num_views=1, seed=1, window=2).to_pydict()
    assert index != build_index(entries, num_views=1, seed=2, window=2).to_pydict()
    source.close()


def test_no_more_tars_than_two_windows_are_on_the_disk(
    server: Server, tiny: str, tmp_path: Path
) -> None:
    here: list[int] = []

    class Watched(RemoteTarSource):
        def read(self, uri: str, offset: int, length: int) -> bytes:
            here.append(len(self._spool._tars))
            return super().read(uri, offset, length)

    source = Watched([server.url(path) for path in TARS], window_tars=1)
    extract(source, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    assert max(here) == 2
    # Once to be listed, once to be read, and nothing by ranges: the order was known.
    assert server.whole == Counter(dict.fromkeys(TARS, 2))
    assert not server.ranges
    assert not source._spool._tars
    source.close()


def test_a_run_that_goes_on_lists_nothing(server: Server, tiny: str, tmp_path: Path) -> None:
    first = extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    digest = first.cache.digest()
    for shard in (0, 2):
        first.cache.forget_shard("t", shard)
    server.whole.clear()
    again = extract(server.url(PATTERN), tmp_path / "c")
    assert again.cache.digest() == digest
    assert max(server.whole.values()) == 1
    server.whole.clear()
    assert extract(server.url(PATTERN), tmp_path / "c").num_shards == 0
    assert not server.whole


def test_refusals_and_cut_bodies_are_tried_again(server: Server, tiny: str, tmp_path: Path) -> None:
    clean = extract(server.url(PATTERN), tmp_path / "a", [f"t={tiny}"], settings=SETTINGS).cache
    for path in TARS:
        server.faults[path] = ["503", "cut", "429", "cut", "cut", "500"]
    report = extract(server.url(PATTERN), tmp_path / "b", [f"t={tiny}"], settings=SETTINGS)
    assert report.rejects == ()
    assert report.cache.digest() == clean.digest()
    assert server.ranges, "a cut body goes on where it ended"


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


@pytest.mark.parametrize(("fault", "tries"), [("503", 6), ("404", 1), ("403", 1)])
def test_what_lasts_stops_the_run_and_is_no_reject(
    server: Server, tiny: str, tmp_path: Path, fault: str, tries: int
) -> None:
    bad = "/data/shard-0003.tar"
    server.faults[bad] = [fault] * 100
    with pytest.raises(SourceError, match=rf"shard-0003.tar cannot be read.*{fault}"):
        extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    assert len(server.faults[bad]) == 100 - tries
    assert not (tmp_path / "c").exists()


def test_a_tar_that_shrank_after_it_was_listed_is_named(
    server: Server, tiny: str, tmp_path: Path
) -> None:
    cache = extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    cache.forget_shard("t", 0)
    server.bodies = {path: body[:600] for path, body in TARS.items()}
    with pytest.raises(SourceError, match=r"shard-\d{4}.tar ends .* bytes before the image at"):
        extract(server.url(PATTERN), tmp_path / "c")


def test_images_out_of_order_are_read_by_ranges(server: Server) -> None:
    source = RemoteTarSource([server.url(path) for path in TARS], window_tars=1)
    entries = source.entries()
    source.expect([(entries[0].uri, entries[0].offset)])
    last = entries[-1]
    data = source.read(last.uri, last.offset, last.length)
    path = f"/data/{last.uri}"
    assert data == TARS[path][last.offset : last.offset + last.length]
    assert server.ranges == {path: 1}
    source.close()


def test_credentials_reach_neither_ids_nor_messages(server: Server) -> None:
    signed = server.url("/data/shard-0000.tar") + "?X-Signature=secret"
    source = RemoteTarSource([signed])
    assert "secret" not in str(source.entries())
    source.close()
    assert shown("https://user:secret@host/a.tar?key=secret") == "https://host/a.tar"
    gone = RemoteTarSource([server.url("/nowhere.tar") + "?key=secret"])
    with pytest.raises(SourceError, match=r"nowhere.tar cannot be read: 404") as caught:
        gone.entries()
    assert "secret" not in str(caught.value)
    gone.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("https://host/images.parquet", "is no tar"),
        ("https://host/a.tar.gz", "is no tar"),
        ("ftp://host/a.tar", "cannot be read: give https"),
        ("https://host/{1..0}.tar", "no range"),
        ("missing-{0..3}.tar", "missing-0.tar' do not exist; 4 tars"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_at_once(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_source(text)


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


def test_a_spool_forgets_a_tar_after_its_last_image() -> None:
    dropped: list[str] = []

    def download(uri: str) -> Any:
        import tempfile

        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(uri.encode() * 4)
        file.flush()
        dropped.append(uri)
        return file

    spool = Spool(download, limit=2)
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


def test_the_window_reaches_a_cache(server: Server, tiny: str, tmp_path: Path) -> None:
    cache = extract(
        server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS,
        options=ExtractOptions(window_tars=1),
    ).cache  # fmt: skip
    uris = cache.index()["uri"].to_pylist()
    assert [len(set(uris[start : start + 5])) for start in range(0, 30, 5)] == [1] * 6


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


def test_labels_for_a_cache_that_has_its_own_are_not_ignored_silently(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    (tmp_path / "labels.json").write_text('{"cats": "x", "dogs": "y"}')
    said: list[str] = []
    options = ExtractOptions(labels_file=tmp_path / "labels.json")
    extract(folder, tmp_path / "c", options=options, on_notice=said.append)
    assert "--labels is for images that are added; those of the cache keep theirs." in said
