"""Every file of a folder is used, rejected, or left out and counted; nothing hangs, whatever lies
there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phistill import cache as store
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.source import MAX_KINDS, few_kinds
from phistill.pipeline.images.tree import MAX_VISITS
from phistill.report.inspection import describe
from tests.pipeline.images.listed import listed
from tests.pipeline.images.test_left_out import picture

SETTINGS = CacheSettings(pixel_size=8)


def place(folder: Path, name: bytes, data: bytes) -> None:
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(data)


def everything(folder: Path) -> int:
    """A folder with one of each thing; how many there are, folders that are walked not counted."""
    folder.mkdir()
    for number in range(1, 256):  # a name with every byte
        if number != ord("/"):
            place(folder, b"a%cb.jpg" % number, picture())
    place(folder, b"".join(bytes([n]) for n in range(1, 256) if n != ord("/"))[:250], picture())
    place(folder, b"zero.jpg", b"")
    place(folder, b"html.jpg", b"<html>")
    place(folder, b"cut.jpg", picture()[:300])
    place(folder, b"UPPER.JPG", picture())
    place(folder, b"no-suffix", picture())
    place(folder, b"jpg", picture())
    place(folder, b".hidden.jpg", picture())
    place(folder, b"._copy.jpg", b"\0")
    place(folder, b"movie.mp4", b"x")
    place(folder, b"end.jpg.", picture())
    os.mkfifo(folder / "fifo.jpg")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    server.bind("socket.jpg")
    os.chdir(here)
    server.close()
    (folder / "directory.jpg").mkdir()
    (folder / "directory.jpg" / "inside.jpg").write_bytes(picture())
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "there.jpg").symlink_to("html.jpg")
    (folder / "through-a-file.jpg").symlink_to("html.jpg/x.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "pipe.jpg").symlink_to("fifo.jpg")
    (folder / "up").symlink_to("..")
    (folder / "here").symlink_to(".")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    inside = ("directory.jpg",)
    return sum(1 for name in os.listdir(os.fsencode(folder)) if os.fsdecode(name) not in inside) + 1


@pytest.mark.guarantee("G29", "every file is used, rejected or left out: a folder of everything")
def test_accepted_and_left_out_and_rejected_are_all(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    folder = tmp_path / "d" / "all"
    total = everything(folder)
    (tmp_path / "d" / "all" / "up").unlink()
    (folder / "up").symlink_to("../all")
    options = ExtractOptions(max_reject_frac=1.0)
    report = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    accepted = report.cache.rows(split="all").size
    rejected = len(report.rejects)
    (source,) = describe(report.cache)["sources"]
    assert accepted + rejected == source["num_images"]
    assert accepted + rejected + sum(source["left_out"].values()) == total
    assert source["left_out"] == dict(report.left_out)
    assert {name: reason.split(":")[0] for name, reason in report.rejects} == {
        "zero.jpg": "empty file",
        "html.jpg": "cannot be decoded",
        "there.jpg": "cannot be decoded",
        "cut.jpg": "cannot be decoded",
    }
    assert source["left_out"] == {
        "names that are not UTF-8": 129,
        "broken links": 5,
        "pipes, sockets and devices": 4,
        "files without a suffix": 3,
        "hidden files and folders": 2,
        "links that lead back": 2,
        ".mp4 files": 1,
    }
    ids = set(report.cache.index()["id"].to_pylist())
    assert {"a\nb.jpg", "a\x7fb.jpg", "a\\b.jpg", "a%b.jpg", "a#b.jpg", "UPPER.JPG"} <= ids


def test_folders_that_link_to_one_another_come_to_an_end(tmp_path: Path) -> None:
    names = [f"d{number}" for number in range(9)]  # 9! ways through them
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(picture())
        for other in names:
            if other != name:
                (tmp_path / name / f"to-{other}").symlink_to(f"../{other}")
    source = open_source(tmp_path)
    assert len(listed(source)) <= 9 * (1 + MAX_VISITS)
    assert source.left_out["links to a folder that many lead to"] > 0
    assert set(names) <= {entry.id.split("/")[0] for entry in listed(source)}


def test_a_folder_that_cannot_be_listed_stops_the_run_by_name(tmp_path: Path) -> None:
    from phistill.errors import SourceError

    (tmp_path / "d" / "gone").mkdir(parents=True)
    (tmp_path / "d" / "1.jpg").write_bytes(picture())
    source = open_source(tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    source._tree = None  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="cannot be listed"):
        source.records()


def test_a_folder_that_may_not_be_entered_is_no_cache_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phistill.errors import SourceError

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store, "exists", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"cannot be listed \(Permission denied\)"):
        open_source(tmp_path).records()


def test_kinds_without_end_are_counted_together() -> None:
    kinds = {f".{number} files": 1 for number in range(1000)} | {"broken links": 7}
    few = few_kinds(kinds)
    assert len(few) == MAX_KINDS
    assert sum(few.values()) == 1007
    assert few["broken links"] == 7


STALLED = """
import errno, os, stat, sys, time, mfusepy
PICTURE = open(sys.argv[3], "rb").read()
class Stalled(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path[1:] in NAMES:
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": len(PICTURE)}
        raise mfusepy.FuseOSError(errno.ENOENT)
    def readdir(self, path, fh):
        return [".", "..", *NAMES]
    def read(self, path, size, offset, fh):
        if sys.argv[2] == "broken" and path == "/3.jpg":
            raise mfusepy.FuseOSError(errno.EIO)
        if sys.argv[2] == "read" and path == "/3.jpg":
            open(sys.argv[3] + ".asked", "wb").close()
            time.sleep(1000)
        return PICTURE[offset : offset + size]
NAMES = [f"{number}.jpg" for number in range(8)]
mfusepy.FUSE(Stalled(), sys.argv[1], foreground=True, nothreads=False)
"""


class Mounted:
    """A place that answers nothing, or with an error, when its fourth image is read. (Linux lets no
    signal at all through to whoever waits for a FUSE's listing, so that cannot be tried.)"""

    def __init__(self, folder: Path, what: str) -> None:
        self.place = folder / "stalled"
        self.place.mkdir()
        (folder / "picture").write_bytes(picture())
        command = [sys.executable, "-c", STALLED, str(self.place), what, str(folder / "picture")]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.place):
            assert self.process.poll() is None, "the file system could not be mounted"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)  # what waits for it gets an error
        self.process.wait()
        subprocess.run(["umount", "-l", str(self.place)], check=False)


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    pytest.importorskip("mfusepy", reason="needs mfusepy and libfuse")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not shutil.which("umount"):
        pytest.skip("mounting a file system that stalls needs root and /dev/fuse")
    stalled = Mounted(tmp_path, request.param)
    yield stalled.place
    stalled.close()


@pytest.mark.root
@pytest.mark.guarantee("G30", "a place that answers no read: ended by SIGTERM within 10 s")
@pytest.mark.parametrize("mounted", ["read"], indirect=True)
def test_a_place_that_does_not_answer_is_left_on_sigterm(mounted: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "phistill", "extract", str(mounted), "--cache", str(tmp_path / "c"),
        "--teacher", "demo:clip", "--pixel-size", "8",
    ]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (mounted.parent / "picture.asked").exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    started = time.monotonic()
    said = run.communicate(timeout=30)[0].decode()
    assert time.monotonic() - started < 10
    assert run.returncode == 143, said
    assert "run the same command again to go on" in said


@pytest.mark.root
@pytest.mark.parametrize("mounted", ["broken"], indirect=True)
def test_a_disk_that_fails_stops_the_run_and_rejects_nothing(
    mounted: Path, tiny: str, tmp_path: Path
) -> None:
    from phistill.errors import SourceError

    with pytest.raises(SourceError, match=r"3\.jpg cannot be read \(Input/output error\), tried 3"):
        extract(mounted, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)


def test_a_pipe_given_as_the_images_is_refused_at_once(tmp_path: Path) -> None:
    from phistill.errors import UsageError

    os.mkfifo(tmp_path / "pipe.parquet")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe.parquet").st_mode)
    with pytest.raises(UsageError, match="are a pipe, a socket or a device"):
        open_source(tmp_path / "pipe.parquet")
