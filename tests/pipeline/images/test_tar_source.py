"""Tars are walked header by header and read in place; what they claim is never trusted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from phistill.errors import PhistillError, SourceError
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.tars.members import members
from tests.pipeline.images.listed import listed

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_that_tarfile_finds(tmp_path: Path, format: str) -> None:
    long = "a" * 60 + "/" + "b" * 70 + ".jpg"
    files = [(long, b"1" * 700), ("x/é.png", b""), ("c.jpg", b"3" * 512), ("c.cls", b"7\n")]
    if format == "ustar":
        files.pop(1)
    path = write(tmp_path / "t.tar", files, FORMATS[format])
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(m.name, m.offset, m.length) for m in members(path)] == expected


def test_images_are_read_in_place_with_their_labels(tmp_path: Path) -> None:
    write(tmp_path / "00.tar", [("a.jpg", b"image a"), ("a.cls", b"3"), ("b.jpg", b"image b")])
    write(tmp_path / "01.tar", [("a.png", b"image c"), ("a.json", b"{}"), ("a.txt", b"words")])
    source = open_source(tmp_path)
    entries = listed(source)
    assert [(e.id, e.label) for e in entries] == [
        ("00.tar/a.jpg", "3"), ("00.tar/b.jpg", None), ("01.tar/a.png", None),
    ]  # fmt: skip
    read = [source.read(e.uri, e.offset, e.length) for e in entries]
    assert read == [b"image a", b"image b", b"image c"]


def test_a_poisoned_name_is_only_an_id(tmp_path: Path) -> None:
    names = ["../../evil.jpg", "/etc/evil.jpg", "a.jpg", "a.jpg"]
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner / "t.tar", [(name, name.encode()) for name in names])
    before = sorted(tmp_path.rglob("*"))
    source = open_source(inner / "t.tar")
    entries = listed(source)
    assert [source.read(e.uri, e.offset, e.length) for e in entries] == [n.encode() for n in names]
    assert entries[0].id == "t.tar/../../evil.jpg"
    assert len({e.id for e in entries}) == 4
    assert {e.uri for e in entries} == {"t.tar"}
    assert sorted(tmp_path.rglob("*")) == before


def test_links_devices_and_folders_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("a.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("b.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"b"))
    assert [entry.id for entry in listed(open_source(tmp_path / "t.tar"))] == ["t.tar/b.jpg"]


def test_a_header_that_claims_a_hundred_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 * 2**20
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(SourceError, match="claims 104,857,600 bytes"):
        list(members(path))


def test_a_member_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**40
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(SourceError, match=r"is cut: the member at byte 0 is 1,099,511,627,776"):
        list(members(path))


def test_a_tar_that_was_cut_after_it_was_indexed_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", [("a.jpg", b"x" * 2000)])
    source = open_source(path)
    (entry,) = listed(source)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match="ends 1,512 bytes before the image at 512 does"):
        source.read(entry.uri, entry.offset, entry.length)


def test_damaged_tars_are_refused_or_give_members_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    files = [("a" * 120 + ".jpg", b"1" * 600), ("b.png", b"2" * 10), ("c" * 300 + ".cls", b"3")]
    seeds = [write(path, files, format).read_bytes() for format in FORMATS.values() if format]
    seeds.append(write(path, files, tarfile.PAX_FORMAT).read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(2000):
        data = bytearray(seeds[number % len(seeds)][: 20 * 512])
        if number % 5 == 4:
            data = data[: int(generator.integers(len(data)))]
        for place in generator.integers(0, max(1, min(len(data), 4000)), 4).tolist():
            if place < len(data):
                data[place] = int(generator.integers(256))
        path.write_bytes(bytes(data))
        try:
            found = list(members(path))
        except PhistillError:
            refused += 1
            continue
        assert all(m.offset + m.length <= len(data) and m.length >= 0 for m in found)
    assert refused > 200
