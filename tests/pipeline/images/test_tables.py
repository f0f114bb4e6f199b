"""Parquet tables read in any order, and Hugging Face datasets saved to disk."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phistill.errors import SourceError, UsageError
from phistill.pipeline import SourceOptions
from phistill.pipeline.images.annotations import hold_out
from phistill.pipeline.images.open_source import open_source
from phistill.pipeline.images.source import image_records
from phistill.pipeline.images.tables.parquet import ParquetSource
from tests.pipeline.images.listed import listed

GENERATOR = np.random.default_rng(0)
IMAGES = [GENERATOR.bytes(int(size)) for size in GENERATOR.integers(0, 5000, 60)]


def features(label: str = "label") -> dict[bytes, bytes]:
    names = {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}
    info = {"info": {"features": {label: names, "image": {"_type": "Image"}}}}
    return {b"huggingface": json.dumps(info).encode()}


def table(start: int = 0, stop: int = 60) -> pa.Table:
    return pa.table(
        {
            "image": [{"bytes": image, "path": "x.jpg"} for image in IMAGES[start:stop]],
            "label": pa.array([row % 3 for row in range(start, stop)], pa.int64()),
        }
    ).replace_schema_metadata(features())


@pytest.mark.parametrize("memory_bytes", [2**30, 1])
def test_images_are_read_in_any_order(tmp_path: Path, memory_bytes: int) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table(), path, row_group_size=16)
    source = ParquetSource(tmp_path, [path.name], memory_bytes=memory_bytes)
    entries = listed(source)
    order = np.random.default_rng(1).permutation(60).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: source.read(entries[row].uri, row, -1), order))
    assert found == [IMAGES[row] for row in order]
    source.close()


def test_a_class_label_is_its_name_and_a_plain_number_itself(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    labels = [entry.label for entry in listed(open_source(tmp_path / "t.parquet"))]
    assert labels[:4] == ["cat", "dog", "eel", "cat"]
    plain = table().replace_schema_metadata({b"huggingface": b"[" * 100_000})
    pq.write_table(plain, tmp_path / "t.parquet")
    labels = [entry.label for entry in listed(open_source(tmp_path / "t.parquet"))]
    assert labels[:4] == ["0", "1", "2", "0"]


def test_a_snapshot_with_a_test_part_is_split_by_the_names_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(table(0, 40), tmp_path / "data" / "train-00000-of-00001.parquet")
    only_train = listed(open_source(tmp_path))
    assert {entry.split for entry in only_train} == {None}
    pq.write_table(table(40, 60), tmp_path / "data" / "test-00000-of-00001.parquet")
    source = open_source(tmp_path)
    splits = {entry.split: entry for entry in listed(source)}
    heldout = splits["heldout"]
    assert set(splits) == {"train", "heldout"}
    assert source.read(heldout.uri, heldout.offset, heldout.length) == IMAGES[59]


def saved(folder: Path, part: pa.Table, num_files: int = 2) -> None:
    """As ``datasets`` writes it: Arrow streams and a state that names them."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{num_files:05d}.arrow" for n in range(num_files)]
    step = -(-part.num_rows // num_files)
    for number, name in enumerate(names):
        with pa.ipc.new_stream(str(folder / name), part.schema) as writer:
            writer.write_table(part.slice(number * step, step), max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset_is_read_in_any_order(tmp_path: Path) -> None:
    saved(tmp_path / "d", table())
    source = open_source(tmp_path / "d")
    entries = listed(source)
    assert len(entries) == 60
    assert [entry.label for entry in entries[:3]] == ["cat", "dog", "eel"]
    for row in np.random.default_rng(0).permutation(60).tolist():
        entry = entries[row]
        assert source.read(entry.uri, entry.offset, entry.length) == IMAGES[row]


def test_a_saved_dictionary_keeps_its_splits(tmp_path: Path) -> None:
    saved(tmp_path / "d" / "train", table(0, 40))
    saved(tmp_path / "d" / "validation", table(40, 60), num_files=1)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    source = open_source(tmp_path / "d")
    entries = listed(source)
    assert [entry.split for entry in entries] == ["train"] * 40 + ["heldout"] * 20
    last = entries[-1]
    assert last.id == "validation/data-00000-of-00001.arrow#19"
    assert source.read(last.uri, last.offset, last.length) == IMAGES[59]


@pytest.mark.parametrize(
    "state",
    ['{"_data_files": [{"filename": "../secret.arrow"}]}', '{"_data_files": [{"filename": 3}]}',
     '{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}',
     '{"_data_files": {"a": 1}}', "[" * 200_000, "[]", '{"_data_files": [{"filename": ".."}]}'],
)  # fmt: skip
def test_a_state_that_points_elsewhere_is_refused(tmp_path: Path, state: str) -> None:
    saved(tmp_path / "d", table(), num_files=1)
    (tmp_path / "secret.arrow").write_bytes(b"")
    (tmp_path / "d" / "state.json").write_text(state)
    with pytest.raises(SourceError):
        listed(open_source(tmp_path / "d"))


def test_a_cut_arrow_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "d", table(), num_files=1)
    (path,) = (tmp_path / "d").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="cannot be read as an Arrow stream"):
        listed(open_source(tmp_path / "d"))


def test_a_file_holds_out_ids_and_folders(tmp_path: Path) -> None:
    entries = image_records(["a/1", "a/2", "b/1", "c"])
    names = tmp_path / "holdout.txt"
    names.write_text("# chosen by hand\na/\nc\n")
    assert hold_out(entries, names)["split"].to_pylist() == ["heldout"] * 2 + ["train", "heldout"]
    for text in ("d\n", "d/\n", "\n"):
        names.write_text(text)
        with pytest.raises(UsageError, match="--holdout"):
            hold_out(entries, names)


def test_a_damaged_row_group_stops_the_run_and_is_no_reject(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table(), path, compression="zstd", use_dictionary=False, write_statistics=False)
    data = bytearray(path.read_bytes())
    source: Any = open_source(path)
    entries = listed(source)
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="cannot be read"):
        source.read(entries[0].uri, 0, -1)


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(sink, "PNG")
    return sink.getvalue()


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "columns",
    [
        {"path": pa.array(["a.png"], pa.large_string())},
        {"path": pa.array(["a.png"]).dictionary_encode()},
        {"path": pa.array(["a.png"], pa.string_view())},
        {"image": pa.array([picture()], pa.binary_view())},
        {"image": pa.array([picture()], pa.large_binary())},
        {"image": pa.array([picture()]).dictionary_encode()},
        {"image": pa.array(["a.png"])},
        {"path": pa.array([b"a.png"])},
        {"Image": pa.array([picture()]), "sha": pa.array([b"x"])},
        {"image_bytes": pa.array([picture()])},
        {"photo": pa.array([{"bytes": picture(), "path": None}], STRUCT), "sha": pa.array([b"x"])},
        {"image": pa.array([{"bytes": None, "path": "a.png"}], STRUCT)},
        {"image": pa.array([{"bytes": None, "path": b"a.png"}])},
        {"image": pa.array([{"bytes": picture(), "path": "gone.png"}], STRUCT)},
    ],
)
def test_any_string_or_binary_type_holds_an_image(columns: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    (record,) = listed(source)
    assert source.read(record.uri, record.offset, record.length) == picture()


def test_a_row_without_an_image_or_a_path_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png", None]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="row 1 of column 'path' names no file"):
        listed(open_source(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"path": ["a.png", ""]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="row 1 of column 'path' names no file"):
        listed(open_source(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"path": [b"a.png", b"\xff"]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="holds paths that are no text"):
        listed(open_source(tmp_path / "x.parquet"))
    image = pa.array([{"bytes": None, "path": "gone.png"}], STRUCT)
    pq.write_table(pa.table({"image": image}), tmp_path / "y.parquet")
    source = open_source(tmp_path / "y.parquet")
    (record,) = listed(source)
    with pytest.raises(SourceError, match=r"names the file 'gone\.png' and does not hold"):
        source.read(record.uri, record.offset, record.length)


def embedded(data: bytes) -> pa.Array:
    return pa.array([{"bytes": data, "path": None}], STRUCT)


@pytest.mark.parametrize(
    ("columns", "member", "wanted"),
    [
        ({"file_name": ["a.png"], "mask": embedded(b"mask")}, "", picture()),
        ({"file_name": ["a.png"], "seg_map": embedded(b"mask")}, "", picture()),
        ({"photo": embedded(b"photo"), "depth": embedded(b"mask")}, "", b"photo"),
        ({"audio": embedded(b"RIFF"), "image": ["a.png"]}, "", picture()),
        ({"left": embedded(b"left"), "right": embedded(b"right")}, "right", b"right"),
        ({"image": [b"image"], "mask": [b"mask"]}, "mask", b"mask"),
    ],
)
def test_a_mask_is_the_image_only_when_it_is_named(
    columns: dict[str, Any], member: str, wanted: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", SourceOptions(member=member))
    (record,) = listed(source)
    assert source.read(record.uri, record.offset, record.length) == wanted


@pytest.mark.parametrize(
    ("columns", "names", "member", "words"),
    [
        ([embedded(b"x"), embedded(b"x")], ["left", "right"], "", "left, right with --member"),
        ([embedded(b"x")], ["mask"], "", "mask with --member"),
        ([[b"x"]], ["image"], "left", "no column 'left' for --member"),
        ([[b"x"], [b"x"]], ["image", "image"], "", "2 columns 'image'"),
        ([[b"x"], ["a"], ["b"]], ["image", "label", "label"], "", "2 columns 'label'"),
        ([["iVBORw0KGgo" * 90]], ["image"], "", "row 0 of column 'image' names"),
        ([[b"x"], [{"a": 1}]], ["image", "label"], "", "--label-column none"),
    ],
)
def test_a_table_that_is_not_clear_is_refused_with_what_to_do(
    columns: list[Any], names: list[str], member: str, words: str, tmp_path: Path
) -> None:
    table = pa.table([pa.array(column) for column in columns], names=names)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=words):
        listed(open_source(tmp_path / "x.parquet", SourceOptions(member=member)))


def test_a_path_that_is_too_long_for_the_system_is_named(tmp_path: Path) -> None:
    long = "x" * 5000
    image = pa.array([{"bytes": None, "path": long}], STRUCT)
    pq.write_table(pa.table({"image": image}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    (record,) = listed(source)
    with pytest.raises(SourceError, match="names the file 'xxx"):
        source.read(record.uri, record.offset, record.length)
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.png", "text": long}))
    with pytest.raises(UsageError, match="is no file below"):
        listed(open_source(tmp_path / "list.jsonl"))
    with pytest.raises(UsageError, match="too long to be a path"):
        open_source(long)


def test_an_arrow_file_of_polars_is_read_as_a_stream_is(tmp_path: Path) -> None:
    part = table(0, 7)
    with pa.ipc.new_file(tmp_path / "a.arrow", part.schema) as file:
        file.write_table(part, max_chunksize=3)
    source = open_source(tmp_path)
    entries = listed(source)
    assert [source.read(e.uri, e.offset, e.length) for e in entries] == IMAGES[:7]
    assert entries[1].label == "dog"
