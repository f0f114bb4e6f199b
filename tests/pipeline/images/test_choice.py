"""A folder is read by what holds most of its images; what else is there is said; --kind decides."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import SourceError, UsageError
from phistill.pipeline import SourceOptions
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.source import listing_text
from tests.pipeline.images.listed import listed
from tests.pipeline.images.test_left_out import picture, tar
from tests.pipeline.images.test_tables import saved


def file(path: Path, data: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


URLS = {"url": ["https://example.org/0.jpg"], "status": ["success"], "caption": ["x"]}


def img2dataset_files(root: Path) -> None:
    for shard in ("00000", "00001"):
        for number in range(2):
            key = root / shard / f"{shard}000{number}"
            file(key.with_suffix(".jpg"), picture())
            file(key.with_suffix(".json"))
            file(key.with_suffix(".txt"), b"x")
        parquet(root / f"{shard}.parquet", URLS)
        file(root / f"{shard}_stats.json")


def img2dataset_tars(root: Path) -> None:
    for shard in ("00000", "00001"):
        root.mkdir(exist_ok=True)
        tar(root / f"{shard}.tar", f"{shard}0.jpg", f"{shard}1.jpg")
        parquet(root / f"{shard}.parquet", URLS)
        file(root / f"{shard}_stats.json")


def img2dataset_tables(root: Path) -> None:
    for shard in ("00000", "00001"):
        parquet(
            root / f"{shard}.parquet",
            {"jpg": [picture()] * 2, **{k: v * 2 for k, v in URLS.items()}},
        )
        file(root / f"{shard}_stats.json")


def snapshot(root: Path) -> None:
    for name in ("train-00000-of-00002-0123456789abcdef", "test-00000-of-00001-0123456789abcdef"):
        parquet(root / "data" / f"{name}.parquet", {"image": [picture()] * 2})
    file(root / "README.md")


def converted(root: Path) -> None:
    parquet(root / "default" / "partial-train" / "0000.parquet", {"image": [picture()] * 2})
    parquet(root / "default" / "test" / "0000.parquet", {"image": [picture()] * 2})


def hive(root: Path) -> None:
    for split, label in (("train", "a b"), ("validation", "c%2Fd")):
        place = root / f"split={split}" / f"label={label}"
        parquet(place / "0.parquet", {"image": [picture()] * 2})


def beside_a_download(root: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg"):
        file(root / name, picture())
    tar(root / "all.tar", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    (root / "all.tar.gz").write_bytes(gzip.compress((root / "all.tar").read_bytes()))
    parquet(root / "metadata.parquet", {"file_name": ["cat/1.jpg"], "split": ["train"]})


def previews(root: Path) -> None:
    (root / "train").mkdir(parents=True)
    tar(root / "train" / "a-000.tar", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    file(root / "docs" / "preview.png", picture())


def coco(root: Path) -> None:
    for name in ("train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "val2017/4.jpg"):
        file(root / "images" / name, picture())
    file(root / "annotations" / "instances_val2017.json")


def image_folder(root: Path) -> None:
    for name in ("train/1.png", "train/2.png", "dev/3.png", "dev/4.png"):
        file(root / name, picture())
    file(root / "train" / "metadata.jsonl", b'{"file_name": "1.png", "text": "x"}\n')


def two_saved(root: Path) -> None:
    for name in ("train", "validation"):
        saved(root / name, pa.table({"image": [picture()] * 2}), num_files=1)


def web_tars(root: Path) -> None:
    root.mkdir()
    tar(root / "imagenet-train-0000.tar", "0.jpg", "1.jpg")
    tar(root / "imagenet-validation-0000.tar", "0.jpg", "1.jpg")


LAYOUTS: dict[Callable[[Path], None], tuple[str, set[str | None], set[str | None], str]] = {
    # makes 4 images: the kind, labels and splits of them, and what is said to be beside
    img2dataset_files: ("folder", {None}, {None}, "4 .txt files"),
    img2dataset_tars: ("tar", {None}, {None}, "2 .parquet files"),
    img2dataset_tables: ("parquet", {None}, {None}, "2 .json files"),
    snapshot: ("parquet", {None}, {"train", "heldout"}, "1 .md files"),
    converted: ("parquet", {None}, {"train", "heldout"}, "nothing left out"),
    hive: ("parquet", {"a b", "c/d"}, {"train", "heldout"}, "nothing left out"),
    beside_a_download: ("folder", {"cat", "dog"}, {None}, "1 .tar files"),
    previews: ("tar", {None}, {None}, "1 image files"),
    coco: ("folder", {None}, {"train", "heldout"}, "1 .json files"),
    image_folder: ("folder", {None}, {"train", "heldout"}, "1 .jsonl files"),
    two_saved: ("arrow", {None}, {"train", "heldout"}, "4 .json files"),
    web_tars: ("tar", {None}, {"train", "heldout"}, "nothing left out"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_people_s_tools_write_is_read_as_it_is_meant(
    layout: Callable[[Path], None], tmp_path: Path
) -> None:
    kind, labels, splits, beside = LAYOUTS[layout]
    root = tmp_path / "d"
    layout(root)
    source = open_source(root)
    entries = listed(source)
    assert (source.kind, len(entries)) == (kind, 4)
    assert {entry.label for entry in entries} == labels
    assert {entry.split for entry in entries} == splits
    assert all(source.read(e.uri, e.offset, e.length) == picture() for e in entries)
    said = listing_text(source, len(entries))
    assert f"--kind {kind}" in said
    assert beside in said
    again = listed(open_source(root, SourceOptions(kind=kind)))
    assert again == entries


def test_the_kind_decides(tmp_path: Path) -> None:
    root = tmp_path / "d"
    beside_a_download(root)
    assert len(listed(open_source(root, SourceOptions(kind="tar")))) == 4
    assert [e.id for e in listed(open_source(root, SourceOptions(kind="parquet")))] == [
        "metadata.parquet#0"
    ]
    with pytest.raises(UsageError, match=r"holds no Arrow files .* --kind arrow asks for"):
        open_source(root, SourceOptions(kind="arrow"))
    with pytest.raises(UsageError, match="is a folder; --kind list reads paths in a text file"):
        open_source(root, SourceOptions(kind="list"))
    with pytest.raises(UsageError, match="cannot be read as image files"):
        open_source(root / "all.tar", SourceOptions(kind="folder"))
    with pytest.raises(UsageError, match="'tars' is not known; write one of folder"):
        SourceOptions(kind="tars")
    (tmp_path / "list.txt").write_text("d/all.tar\n")
    assert len(listed(open_source(tmp_path / "list.txt"))) == 4
    (entry,) = listed(open_source(tmp_path / "list.txt", SourceOptions(kind="list")))
    assert entry.id == "d/all.tar"


def test_a_damaged_table_beside_good_ones_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"image": [picture()]})
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"b\.parquet cannot be read as parquet"):
        open_source(tmp_path)
    file(tmp_path / "1.jpg", picture())
    file(tmp_path / "2.jpg", picture())
    assert open_source(tmp_path).kind == "folder"  # whatever it was, it is beside


def test_files_of_the_datasets_cache_are_read_without_what_map_left(tmp_path: Path) -> None:
    table = pa.table({"image": [picture()] * 2, "label": [0, 1]})
    for name in ("cifar10-train.arrow", "cifar10-test.arrow", "cache-0123.arrow"):
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    source = open_source(tmp_path)
    assert source.kind == "arrow"
    assert [e.split for e in listed(source)] == ["heldout"] * 2 + ["train"] * 2
    assert source.left_out == {".arrow files": 1}


def test_a_table_names_files_beside_itself_or_below_the_folder_given(tmp_path: Path) -> None:
    file(tmp_path / "a" / "1.dat", picture())
    parquet(tmp_path / "a" / "t.parquet", {"path": ["1.dat"]})
    (entry,) = listed(source := open_source(tmp_path))
    assert source.read(entry.uri, entry.offset, entry.length) == picture()
    parquet(tmp_path / "a" / "t.parquet", {"path": ["a/1.dat"]})
    (entry,) = listed(source := open_source(tmp_path))
    assert source.read(entry.uri, entry.offset, entry.length) == picture()
    parquet(tmp_path / "a" / "t.parquet", {"path": ["2.dat"]})
    with pytest.raises(UsageError, match=r"row 0 of column 'path' names '2\.dat', and that is no"):
        listed(open_source(tmp_path))
    parquet(tmp_path / "a" / "t.parquet", URLS)
    with pytest.raises(UsageError, match=r"names URLs .*img2dataset"):
        listed(open_source(tmp_path))


def test_captions_of_images_that_are_missing_are_counted(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", "0.jpg", "0.json", "0.txt", "1.json", "1.txt", "1.npy")
    source = open_source(tmp_path / "x.tar")
    assert len(listed(source)) == 1
    assert source.left_out == {".json files": 1, ".txt files": 1, ".npy files": 1}


def test_a_metadata_file_gives_labels(tmp_path: Path) -> None:
    from phistill.pipeline.images.annotations import label

    image_folder(tmp_path / "d")
    lines = [{"file_name": f"{n}.png", "label": f"class {n % 2}"} for n in (1, 2, 3, 4)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records, missing = label(open_source(tmp_path / "d").records(), tmp_path / "metadata.jsonl")
    assert missing == 0
    assert set(records["label"].to_pylist()) == {"class 0", "class 1"}
