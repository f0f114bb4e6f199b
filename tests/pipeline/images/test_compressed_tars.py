"""Compressed tars are unpacked on the way, into a buffer that holds two windows of them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from phistill.errors import SourceError
from phistill.pipeline import CacheSettings, ExtractOptions, SourceOptions, extract
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.tars.fetched_tar import FetchedTarSource
from tests.pipeline.images.listed import listed
from tests.pipeline.images.test_left_out import picture, tar

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "x.tar.gz": gzip.compress,
    "x.tgz": gzip.compress,
    "x.tar.bz2": bz2.compress,
    "x.tar.xz": lzma.compress,
    "x.tar.zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "plain.tar.gz": bytes,
}


@pytest.mark.parametrize("name", PACKERS)
def test_a_compressed_tar_is_read_like_the_tar_inside(name: str, tmp_path: Path) -> None:
    plain = tar(tmp_path / "x.tar", "b.jpg", "a.jpg", "a.txt")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(PACKERS[name](plain.read_bytes()))
    for place in (tmp_path / "d", tmp_path / "d" / name):
        source = open_source(place)
        entries = listed(source)
        assert [entry.id for entry in entries] == [f"{name}/b.jpg", f"{name}/a.jpg"]
        for entry in entries:
            assert source.read(entry.uri, entry.offset, entry.length) == picture()
        source.close()
        fresh = open_source(place)  # nothing was unpacked for it: found by its offset
        last = entries[-1]
        assert fresh.read(last.uri, last.offset, last.length) == picture()
        fresh.close()


def test_no_more_than_two_windows_are_unpacked_at_a_time(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(5):
        plain = tar(tmp_path / "x.tar", f"{number}a.jpg", f"{number}b.jpg")
        (tmp_path / "d" / f"{number}.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    here: list[int] = []

    class Watched(FetchedTarSource):
        def read(self, uri: str, offset: int, length: int) -> bytes:
            here.append(len(self._buffer._tars))
            return super().read(uri, offset, length)

    names = [f"{number}.tar.gz" for number in range(5)]
    source = Watched.of_compressed(tmp_path / "d", names, SourceOptions(window_tars=1))
    cache = extract(
        source, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=0),
        options=ExtractOptions(num_workers=1),
    ).cache  # fmt: skip
    source.close()
    assert max(here) <= 2
    assert cache.rows(["t"], "all").size == 10


def test_a_cut_or_damaged_one_stops_the_run_by_name(tmp_path: Path) -> None:
    data = gzip.compress(tar(tmp_path / "x.tar", "a.jpg").read_bytes())
    for damaged in (data[: len(data) // 2], data[:20] + bytes(8) + data[28:]):
        (tmp_path / "x.tar.gz").write_bytes(damaged)
        source = open_source(tmp_path / "x.tar.gz")
        with pytest.raises(SourceError, match=r"x\.tar\.gz (cannot be unpacked|has no tar header)"):
            listed(source)
        source.close()


def test_a_tar_under_another_name_says_where_its_header_is_wrong(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w:gz"):
        pass
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes() + bytes(1024))
    with pytest.raises(SourceError, match="no tar header"):
        listed(open_source(tmp_path / "t.tar"))
