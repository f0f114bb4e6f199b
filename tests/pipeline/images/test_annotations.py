"""Labels that the user gives reach the index, whatever file they come in and whatever they name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract, open_source
from phistill.pipeline.images.annotations import label, read_labels
from phistill.pipeline.images.source import image_records
from tests.pipeline.images.listed import listed

ENTRIES = image_records(["n01/a.jpg", "n01/b.png", "deep/n02/c.jpg"], labels=["n01", "n01", "0"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ids.csv", "n01/a.jpg,cat\nn01/b.png,dog\ndeep/n02/c.jpg,cow\n", ["cat", "dog", "cow"]),
        ("bare.csv", "n01/a,cat\nb,dog\nc.jpg,cow\n", ["cat", "dog", "cow"]),
        ("head.csv", "label,x,id\ncat,1,n01/a.jpg\ndog,2,n01/b.png\n", ["cat", "dog", None]),
        ("three.csv", "fold,image_id,label\n0,a,cat\n0,b,dog\n", ["cat", "dog", None]),
        ("folders.tsv", "n01\ttench, a fish\nn02\tgoldfish\n",
         ["tench, a fish", "tench, a fish", "goldfish"]),
        ("paths.json", '{"deep/n02": 7, "n01": "x"}', ["x", "x", "7"]),
        ("numbers.json", '["zero", "one"]', [None, None, "zero"]),
        ("imagenet.json", '{"0": ["n9", "zero"], "n01": ["n8", "tench"]}',
         ["tench", "tench", "zero"]),
        ("nearest.json", '{"deep": "far", "n02": "near", "n01/a.jpg": "own", "n01": "folder"}',
         ["own", "folder", "near"]),
    ],
)  # fmt: skip
def test_a_key_is_an_id_a_folder_or_the_label_of_the_source(
    tmp_path: Path, name: str, text: str, expected: list[str | None]
) -> None:
    (tmp_path / name).write_text(text)
    found, missing = label(ENTRIES, tmp_path / name)
    assert found["label"].to_pylist() == expected
    assert missing == expected.count(None)


def test_a_parquet_table_is_read_by_its_columns_names(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"category": [1, 2], "x": [0, 0], "id": ["n01/a.jpg", "b"]}), path)
    assert read_labels(path) == {"n01/a.jpg": "1", "b": "2"}
    pq.write_table(pa.table({"a": [1], "b": [2]}), path)
    with pytest.raises(UsageError, match="has the columns a, b; wanted one of id, key"):
        read_labels(path)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", "3", "neither an object nor a list"),
        ("a.json", '{"n01": {"x": 1}}', "a label is a name or a number"),
        ("a.json", '{"n01": null}', "a label is a name or a number"),
        ("a.csv", "", "lists no label"),
        ("a.csv", "one\n", "line 1 has 1 columns"),
        ("a.csv", "n01;cat\n", "line 1 has 1 columns, not two with a comma between them"),
        ("a.csv", "image_id,fold,dx\na,0,mel\n", "has the columns image_id, fold, dx; wanted"),
        ("a.csv", "a.jpg,0,mel\n", "has the columns a.jpg, 0, mel; wanted"),
        ("a.jsonl", '{"id": "a", "label": "x"}\n3\n', "lines that are no objects"),
        ("a.csv", "n01,cat\nn01,dog\n", "gives 'n01' two labels"),
        ("a.csv", "n09,cat\n", r"names none of the images. It has, for example, 'n09'; an image "
         r"has the id 'n01/a.jpg' and the label 'n01'"),
        ("a.txt", "n01,cat\n", "is not a .json, .jsonl, .csv, .tsv or .parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_label_map_is_refused_with_the_reason(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=complaint):
        label(ENTRIES, tmp_path / name)


def test_labels_are_recorded_in_the_index(
    folder: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    (tmp_path / "labels.json").write_text('{"cats": "Felis", "dogs/000.jpg": "Canis"}')
    cache = extract(
        folder, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=0, shard_rows=8),
        options=ExtractOptions(labels_file=tmp_path / "labels.json"),
    ).cache  # fmt: skip
    index = cache.index().to_pydict()
    found = dict(zip(index["id"], index["label"], strict=True))
    assert {v for k, v in found.items() if k.startswith("cats/")} == {"Felis"}
    assert found["dogs/000.jpg"] == "Canis"
    assert found["dogs/002.png"] is None
    assert caplog.messages[1:] == [f"19 of 41 images have no label in {tmp_path / 'labels.json'}."]


def test_train_and_val_at_the_top_of_a_folder_are_splits_and_no_classes(tmp_path: Path) -> None:
    for name in ("train/cats/a.jpg", "train/dogs/b.jpg", "val/cats/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    entries = listed(open_source(tmp_path))
    assert [(entry.label, entry.split) for entry in entries] == [
        ("cats", "train"), ("dogs", "train"), ("cats", "heldout"),
    ]  # fmt: skip
    (tmp_path / "a picture of all.jpg").write_bytes(b"x")  # decides nothing
    entries = listed(open_source(tmp_path))
    assert [(entry.label, entry.split) for entry in entries] == [
        (None, "train"), ("cats", "train"), ("dogs", "train"), ("cats", "heldout"),
    ]  # fmt: skip
    (tmp_path / "a picture of all.jpg").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/d.jpg").write_bytes(b"x")
    entries = listed(open_source(tmp_path))
    assert (entries[0].label, entries[0].split) == ("other", "train")
    assert [entry.split for entry in entries][1:] == ["train", "train", "heldout"]
    for name in ("train/cats/a.jpg", "train/dogs/b.jpg"):
        (tmp_path / name).unlink()
    assert {entry.split for entry in listed(open_source(tmp_path))} == {None}  # val is a class


def test_labels_and_a_split_for_a_cache_that_has_its_own_are_not_ignored_silently(
    folder: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    extract(
        folder, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=0, shard_rows=8)
    )
    (tmp_path / "labels.json").write_text('{"cats": "x", "dogs": "y"}')
    (tmp_path / "ids.txt").write_text("cats/\n")
    options = ExtractOptions(
        labels_file=tmp_path / "labels.json", holdout_file=tmp_path / "ids.txt"
    )
    extract(folder, tmp_path / "c", options=options)
    for option in ("--labels", "--holdout FILE"):
        told = f"{option} is for images that are added; those of the cache keep theirs."
        assert told in caplog.messages
