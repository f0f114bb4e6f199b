"""Damaged tables, datasets and tars: each is read or refused by name, and nothing else is raised.

A subset here; 1,000 mutants of each run with PHISTILL_FULL=1.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import PhistillError
from phistill.pipeline.images import local_files
from phistill.pipeline.images.open_source import open_source
from tests.pipeline.decode.test_corrupt_images import FULL, mutant
from tests.pipeline.images.listed import listed
from tests.pipeline.images.test_left_out import picture

MUTANTS = 1000 if FULL else 60
TABLE = pa.table(
    {
        "image": [{"bytes": picture() + bytes([row]), "path": f"{row}.jpg"} for row in range(20)],
        "label": [row % 3 for row in range(20)],
        "split": ["train", "val"] * 10,
    }
)


def parquet(**options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=7, **options)
    return sink.getvalue()


def arrow() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=7)
    return sink.getvalue()


def tar(format: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as file:
        for name, data in (
            ("0.jpg", picture()), ("0.cls", b"3"), ("n" * 150 + ".jpg", picture()),
            ("1.jpg", picture()), ("1.txt", b"x"), ("1.seg.png", picture()),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return sink.getvalue()


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "snappy.parquet": parquet,
    "zstd.parquet": lambda: parquet(compression="zstd"),
    "gzip.parquet": lambda: parquet(compression="gzip", use_dictionary=False),
    "pages.parquet": lambda: parquet(data_page_version="2.0", compression="none"),
    "stream.arrow": arrow,
    "gnu.tar": lambda: tar(tarfile.GNU_FORMAT),
    "pax.tar": lambda: tar(tarfile.PAX_FORMAT),
    "packed.tar.gz": lambda: gzip.compress(tar(tarfile.GNU_FORMAT)),
}


def refusal(path: Path) -> str:
    """What is said of a file that cannot be read; nothing when every image of it can."""
    try:
        source = open_source(path)
        try:
            for entry in listed(source):
                source.read(entry.uri, entry.offset, entry.length)
        finally:
            source.close()
    except PhistillError as error:
        return str(error)
    return ""


@pytest.mark.guarantee("G13", f"{MUTANTS:,} mutants of a table or tar: read or refused by name")
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_mutant_is_read_or_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "NUM_TRIES", 1)  # a damaged file is no hiccup of a disk
    path, data = tmp_path / name, CONTAINERS[name]()
    generator = np.random.default_rng(len(name))
    outcomes = Counter[str]()
    for number in range(1 + MUTANTS):
        path.write_bytes(mutant(data, data[::-1], generator) if number else data)
        outcomes[refusal(path) if number else refusal(path) or "whole"] += 1
    assert outcomes["whole"] == 1
    refused = {text for text in outcomes if text not in ("", "whole")}
    assert all(name.partition(".")[0] in text for text in refused)
    assert MUTANTS - outcomes[""] > MUTANTS // 10
