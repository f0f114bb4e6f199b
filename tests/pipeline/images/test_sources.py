"""Folders, lists and parquet tables are listed in a fixed order and read exactly."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import SourceError, UsageError
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.source import image_records
from phistill.pipeline.index import build_index
from tests.pipeline.images.listed import listed


def test_a_folder_lists_images_below_it_with_their_folder_as_label(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(tmp_path)
    entries = listed(source)
    assert [(entry.id, entry.label) for entry in entries] == [("a/1.jpg", "a"), ("b/2.PNG", "b")]
    assert source.read(entries[1].uri, -1, -1) == b"b/2.PNG"


def test_a_folder_without_images_says_which_suffixes_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no image: .*\.jpg"):
        listed(open_source(tmp_path))


def test_a_list_gives_paths_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("# comment\nx.png\n")
    source = open_source(tmp_path / "list.txt")
    (entry,) = listed(source)
    assert source.read(entry.uri, entry.offset, entry.length) == b"x"


@pytest.mark.parametrize("struct", [False, True])
def test_a_parquet_table_gives_bytes_labels_and_split(tmp_path: Path, struct: bool) -> None:
    images = [f"image {row}".encode() for row in range(10)]
    column = [{"bytes": image, "path": "x.png"} for image in images] if struct else images
    table = pa.table(
        {"image": column, "label": ["cat", None] * 5, "split": ["train", "validation"] * 5}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    source = open_source(tmp_path / "t.parquet")
    entries = listed(source)
    assert [entry.split for entry in entries[:2]] == ["train", "heldout"]
    assert entries[0].label == "cat"
    for row in (9, 0, 4, 5):
        entry = entries[row]
        assert source.read(entry.uri, entry.offset, entry.length) == images[row]


def test_a_parquet_table_without_images_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="has the columns x; none holds images"):
        listed(open_source(tmp_path / "t.parquet"))


def test_a_file_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    source = open_source(tmp_path)
    (tmp_path / "x.png").unlink()
    with pytest.raises(SourceError, match=r"x\.png is in the index and is gone"):
        source.read("x.png", -1, -1)


def test_the_index_is_a_seeded_permutation_with_the_views_of_an_image_together() -> None:
    entries = image_records([str(number) for number in range(100)])
    table = build_index(entries, num_views=2, seed=3).to_pydict()
    assert table["row"] == list(range(200))
    assert table["id"][::2] == table["id"][1::2]
    assert table["view"][:4] == [0, 1, 0, 1]
    assert sorted(table["id"][::2], key=int) == [str(number) for number in range(100)]
    assert table["id"] != sorted(table["id"], key=int)
    assert build_index(entries, num_views=2, seed=3).to_pydict() == table
    assert build_index(entries, num_views=2, seed=4).to_pydict() != table
