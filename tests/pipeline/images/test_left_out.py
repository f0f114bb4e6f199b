"""What lies beside the images is left out, counted and named; nothing vanishes without a word."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phistill.errors import SourceError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.source import SourceOptions, left_out_text
from phistill.report.extraction import summary_text
from tests.pipeline.images.listed import listed


def picture() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            file.addfile(member, io.BytesIO(picture()))
    return path


def names(path: Path, rules: SourceOptions | None = None) -> list[str]:
    source = open_source(path, rules or SourceOptions())
    return [record.id.partition(".tar/")[2] or record.id for record in listed(source)]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with two images and one of each thing that is none."""
    folder = tmp_path / "odd"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.jpg").write_bytes(picture())
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg" / "2.JPE").write_bytes(picture())
    (folder / "._1.jpg").write_bytes(b"\0")
    (folder / ".Trash").mkdir()
    (folder / "@eaDir").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "a" / "back").symlink_to("..")
    (folder / "notes.txt").write_text("x")
    (folder / "1.jpg.1").write_bytes(picture())
    (folder / "README").write_text("x")
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(picture())
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s.jpg"))
    server.close()
    return folder


def test_every_kind_of_thing_that_is_no_image_is_counted(odd: Path) -> None:
    source = open_source(odd)
    assert [record.id for record in listed(source)] == ["a/1.jpg", "x.jpg/2.JPE"]
    assert source.left_out == {
        "hidden files and folders": 3,
        "pipes, sockets and devices": 2,
        "broken links": 2,
        "links that lead back": 1,
        ".txt files": 1,
        ".1 files": 1,
        "files without a suffix": 1,
        "names that are not UTF-8": 1,
    }


def test_what_was_left_out_is_told_at_once_and_in_the_end(
    odd: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    report = extract(
        odd, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=0),
    )  # fmt: skip
    assert report.cache.num_rows == 2
    assert report.left_out["broken links"] == 2
    assert caplog.messages[0].startswith(
        "2 images from image files (--kind folder); left out: 3 hidden files and folders, "
    )
    assert left_out_text({}) == ""


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.jpg").write_bytes(picture())
    (tmp_path / "d").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).symlink_to("../store")
    assert names(tmp_path / "d") == ["cat/1.jpg", "dog/1.jpg"]


@pytest.mark.parametrize(
    ("members", "taken", "member"),
    [
        (["0.jpg", "0.seg.png", "1.jpg", "1.seg.png"], ["0.jpg", "1.jpg"], ""),
        (["0.jpg", "0.seg.png", "1.jpg", "1.seg.png"], ["0.seg.png", "1.seg.png"], "seg.png"),
        (["0.left.jpg", "0.right.jpg", "1.left.jpg", "1.right.jpg"],
         ["0.left.jpg", "1.left.jpg"], ""),
        (["0.left.jpg", "0.right.jpg", "1.left.jpg", "1.right.jpg"],
         ["0.right.jpg", "1.right.jpg"], ".RIGHT.jpg"),
        (["photo.001.jpg", "photo.002.jpg", "other.jpg"],
         ["photo.001.jpg", "photo.002.jpg", "other.jpg"], ""),
        (["0.png", "0.jpg", "1.jpg", "2.jpg"], ["0.jpg", "1.jpg", "2.jpg"], ""),
        (["a.jpg", "._a.jpg", "__MACOSX/a.jpg"], ["a.jpg"], ""),
        (["0.jpg", "0.seg.png", "1.seg.png"], ["0.jpg"], ""),  # the image of 1 is missing
        (["0.jpg", "0.l.seg.png", "1.l.seg.png"], ["0.jpg"], ""),
        (["a.jpg", "a.1.jpg", "b.1.jpg", "c.1.jpg"], ["a.jpg", "b.1.jpg", "c.1.jpg"], ""),
        (["caf\udce9.jpg", "a.jpg", "d\udce9/b.jpg"], ["a.jpg"], ""),
    ],
)  # fmt: skip
def test_one_image_of_a_sample_is_taken_and_the_others_are_counted(
    members: list[str], taken: list[str], member: str, tmp_path: Path
) -> None:
    path = tar(tmp_path / "x.tar", *members)
    assert names(path, SourceOptions(member=member)) == taken
    source = open_source(path, SourceOptions(member=member))
    listed(source)
    assert sum(source.left_out.values()) == len(members) - len(taken)


@pytest.mark.parametrize("kind", [b"M", b"Z"])
def test_members_of_other_kinds_are_counted(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        member = tarfile.TarInfo("0.jpg")
        member.type, member.size = kind, 600
        file.fileobj.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        file.offset += 512 + 1024
        member = tarfile.TarInfo("1.jpg")
        member.size = len(picture())
        file.addfile(member, io.BytesIO(picture()))
    source = open_source(tmp_path / "x.tar")
    assert [record.id for record in listed(source)] == ["x.tar/1.jpg"]
    assert source.left_out == {"members of other kinds in tars": 1}


@pytest.mark.parametrize("cut", [300, 0])
def test_a_cut_tar_is_an_error_unless_allowed(cut: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", "0.jpg", "1.jpg")
    one = 512 + -(-len(picture()) // 512) * 512
    os.truncate(path, one + cut)
    with pytest.raises(SourceError, match=r"may have been cut.*--allow-cut-tars"):
        names(path)
    assert names(path, SourceOptions(allow_cut_tars=True)) == ["0.jpg"]


def test_tars_behind_one_another_are_read_to_the_end(tmp_path: Path) -> None:
    whole = (
        tar(tmp_path / "a.tar", "0.jpg").read_bytes()
        + tar(tmp_path / "b.tar", "1.jpg").read_bytes()
    )
    (tmp_path / "both.tar").write_bytes(whole + b"garbage behind the end" * 100)
    assert names(tmp_path / "both.tar") == ["0.jpg", "1.jpg"]


def test_the_rules_reach_an_extraction(tiny: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", "0.jpg", "0.seg.png", "1.jpg", "1.seg.png")
    options = ExtractOptions(source=SourceOptions(member="seg.png"))
    settings = CacheSettings(pixel_size=0)
    report = extract(path, tmp_path / "c", [f"t={tiny}"], settings=settings, options=options)
    closing = summary_text(report, str(path), None, None)
    assert "\nLeft out: 2 KEY.jpg beside another image of its key." in closing
    assert sorted(report.cache.index()["id"].to_pylist()) == ["x.tar/0.seg.png", "x.tar/1.seg.png"]


def test_a_folder_is_read_by_what_holds_images(tmp_path: Path) -> None:
    urls = pa.table({"url": ["https://example.org/0.jpg"], "status": ["success"]})
    (tmp_path / "shards").mkdir()
    tar(tmp_path / "shards" / "00000.tar", "0.jpg")
    pq.write_table(urls, tmp_path / "shards" / "00000.parquet")
    assert open_source(tmp_path / "shards").kind == "tar"
    assert open_source(tmp_path).kind == "tar"  # one folder down
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.jpg").write_bytes(picture())
    pq.write_table(urls, tmp_path / "files" / "about.parquet")
    assert open_source(tmp_path / "files").kind == "folder"
    (tmp_path / "hive" / "split=train").mkdir(parents=True)
    pq.write_table(
        pa.table({"image": [picture()]}), tmp_path / "hive" / "split=train" / "0.parquet"
    )
    assert open_source(tmp_path / "hive").kind == "parquet"


def test_a_list_may_begin_with_a_byte_order_mark_and_hold_odd_letters(tmp_path: Path) -> None:
    name = "a\u2028b+c%.jpg"
    (tmp_path / name).write_bytes(picture())
    (tmp_path / "list.txt").write_text(f"\ufeff{name}\n", "utf-8")
    assert names(tmp_path / "list.txt") == [name]
