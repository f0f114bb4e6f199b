"""A class label is a name or a whole number, whatever the column's type; what is none is refused by
its row."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import SourceError, UsageError
from phistill.pipeline import SourceOptions
from phistill.pipeline.images.open_source import open_source
from tests.pipeline.images.listed import listed
from tests.pipeline.images.test_left_out import picture

NAMES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def labels(
    path: Path, column: Any, feature: Any = None, name: str = "label", **options: Any
) -> list[str | None]:
    table = pa.table({"image": [picture()] * len(column), name: column})
    if feature is not None:
        info = {"info": {"features": {name: feature}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    pq.write_table(table, path / "t.parquet", row_group_size=2)
    return [e.label for e in listed(open_source(path / "t.parquet", SourceOptions(**options)))]


@pytest.mark.parametrize(
    ("column", "feature", "expected"),
    [
        (pa.array([3, None, 1], pa.int16()), None, ["3", None, "1"]),
        (pa.array(np.array([3, 1, 2], np.uint8)), None, ["3", "1", "2"]),
        (pa.array(["x", None, " y "]), None, ["x", None, "y"]),
        (pa.array(["x", "", "y"], pa.large_string()), None, ["x", None, "y"]),
        (pa.array(["x", "y", "x"], pa.string_view()), None, ["x", "y", "x"]),
        (pa.array(["x", None, "y"]).dictionary_encode(), None, ["x", None, "y"]),
        (pa.DictionaryArray.from_arrays([1, 0, None], ["a", "b", "c"]), None,
         ["b", "a", None]),
        (pa.array([3.0, None, 1.0]), None, ["3", None, "1"]),
        (pa.array([3.0, float("nan"), 1.0], pa.float32()), None, ["3", None, "1"]),
        (pa.array([Decimal("3.00"), None, Decimal("1.00")]), None, ["3", None, "1"]),
        (pa.array([True, None, False]), None, ["true", None, "false"]),
        (pa.array([b"x", None, "\u00e9".encode()]), None, ["x", None, "\u00e9"]),
        (pa.array([b"ab", b"cd", b"ab"], pa.binary(2)), None, ["ab", "cd", "ab"]),
        (pa.nulls(3), None, [None, None, None]),
        (pa.array([1, -1, 0]), NAMES, ["dog", None, "cat"]),
        (pa.array([1, 0, None], pa.int8()).dictionary_encode(), NAMES, ["dog", "cat", None]),
        (pa.array([[1], [], [0]]), {"feature": NAMES, "_type": "Sequence"}, ["dog", None, "cat"]),
        (pa.array([[1], None, [0]]), [NAMES], ["dog", None, "cat"]),
        (pa.array([["x"], None, ["y"]], pa.large_list(pa.string())), None, ["x", None, "y"]),
    ],
)  # fmt: skip
def test_a_label_of_any_type_is_its_name_or_number(
    column: Any, feature: Any, expected: list[str | None], tmp_path: Path
) -> None:
    assert labels(tmp_path, column, feature) == expected


@pytest.mark.parametrize(
    ("column", "feature", "complaint"),
    [
        (pa.array([[1], [0, 1], [0]]), None, r"row 1 .* holds 2 labels.*--label-column none"),
        (pa.array([["a"], ["b"], ["a", "c"]]), None, r"row 2 .* holds 2 labels"),
        (pa.array([1.0, 2.5, 3.0]), None, r"row 1 .* holds 2\.5, which is no whole number"),
        (pa.array([1.0, 2.0, float("inf")]), None, r"row 2 .* holds inf"),
        (pa.array([b"x", b"\xff\xfe", b"y"]), None, r"row 1 .* which is no text"),
        (pa.array([0, 1, 2]), NAMES, r"row 2 .* holds class 2, and the table names 2 classes"),
        (pa.array([{"a": 1}, {"a": 2}, None]), None, r"row 0 .* holds a dict"),
        (pa.array([0, 1, 2], pa.timestamp("s")), None, r"row 0 .* holds a datetime"),
    ],
)  # fmt: skip
def test_what_is_no_class_is_refused_by_its_row(
    column: Any, feature: Any, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        labels(tmp_path, column, feature)
    assert labels(tmp_path, column, feature, label_column="none") == [None] * 3


def test_a_column_named_in_capitals_is_the_label_too(tmp_path: Path) -> None:
    assert labels(tmp_path, ["cat"], name="Label") == ["cat"]


def test_another_column_may_be_the_label(tmp_path: Path) -> None:
    column = pa.array(["x", "y"])
    assert labels(tmp_path, column, name="genre") == [None, None]
    assert labels(tmp_path, column, name="genre", label_column="genre") == ["x", "y"]
    with pytest.raises(UsageError, match=r"has no column 'gerne' .* Did you mean genre"):
        labels(tmp_path, column, name="genre", label_column="gerne")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 8]), ["7", "8"]),
        (pa.array([7.0, 8.0]), ["7", "8"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", None]), "row 1 of column 'id' holds no id"),
        (pa.array(["a", ""]), "row 1 of column 'id' holds no id"),
        (pa.array([1.0, float("nan")]), "row 1 of column 'id' holds no id"),
        (pa.array([["a"], ["b"]]), "row 0 of column 'id' holds a list"),
        (pa.array(["a", "a"]), "lists 'a' 2 times"),
    ],
)
def test_an_id_is_text_in_every_row(ids: Any, expected: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture()] * 2, "id": ids}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    if isinstance(expected, list):
        assert [entry.id for entry in listed(source)] == expected
        return
    with pytest.raises(UsageError, match=expected):
        listed(source)


def test_a_split_that_is_not_known_is_refused_by_its_row(tmp_path: Path) -> None:
    names = ["train", "dev", None, "Validation", "val", "TEST", "training"]
    table = pa.table({"image": [picture()] * 7, "split": names})
    pq.write_table(table, tmp_path / "t.parquet")
    splits = [entry.split for entry in listed(open_source(tmp_path / "t.parquet"))]
    assert splits == ["train", "heldout", None, "heldout", "heldout", "heldout", "train"]
    table = table.set_column(1, "split", pa.array(["train"] * 6 + ["other"]))
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=r"row 6 of column 'split' holds split 'other' is not"):
        listed(open_source(tmp_path / "t.parquet"))


@pytest.mark.parametrize("label", [b"\xff\xfe\x00", b"\x89PNG\r\n", b"x" * 300])
def test_the_label_of_a_tar_is_text(label: bytes, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, data in (("0.jpg", picture()), ("0.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with pytest.raises(SourceError, match=r"0\.cls is no label.*--label-column none"):
        listed(open_source(tmp_path / "x.tar"))
    (entry,) = listed(open_source(tmp_path / "x.tar", SourceOptions(label_column="none")))
    assert entry.label is None


@pytest.mark.parametrize(
    ("labels_of_tars", "expected"),
    [(["1", "2"], ["1", "2"]), (["1", None], ["1", "1"]), (["1", "2", "3"], [None, None])],
)
def test_the_labels_of_tars_behind_one_another_are_their_own(
    labels_of_tars: list[str | None], expected: list[str | None], tmp_path: Path
) -> None:
    import io
    import tarfile

    whole = b""
    for number, label in enumerate(labels_of_tars):
        with tarfile.open(tmp_path / "part.tar", "w") as file:
            members = [("0.jpg", picture())] if number < 2 else []
            members += [("0.cls", label.encode())] if label else []
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        whole += (tmp_path / "part.tar").read_bytes()
    (tmp_path / "both.tar").write_bytes(whole)
    assert [entry.label for entry in listed(open_source(tmp_path / "both.tar"))] == expected
