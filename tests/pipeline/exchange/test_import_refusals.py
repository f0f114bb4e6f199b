"""Features that fit no cache, or claim what is not so, are refused with what to do."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import phistill.cache as store
from phistill.cache import Cache
from phistill.errors import CacheMismatch, SourceError, UsageError
from phistill.pipeline.exchange.export_features import export_features
from phistill.pipeline.exchange.import_features import import_features
from tests.pipeline.exchange.feature_folders import normal, write

CacheFactory = Callable[..., Cache]
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another number": ({"t__patches": normal(39, 4, 3)}, {}, "shape .39, 4, 3.* 40 ids"),
    "float64": ({"t__patches": normal(40, 4, 3, dtype=float)}, {}, "is float64; wanted float16"),
    "no square": ({"t__patches": normal(40, 5, 3)}, {}, "State the grid with --grid"),
    "other grid": (
        {"t__patches": normal(40, 6, 3)},
        {"grids": {"t": (2, 2)}},
        r"on the grid \(2, 2\)",
    ),
    "unknown grid": (
        {"t__patches": normal(40, 4, 3)},
        {"grids": {"u": (2, 2)}},
        "--grid names 'u'",
    ),
    "one axis": ({"t__patches": normal(40, 3)}, {}, "rows of shape .3,.; wanted .T, C."),
    "no patches": ({"t__summary": normal(40, 3)}, {}, "has summary and no patches"),
    "no source": ({"t__patches": normal(40, 4, 3)}, {"source": ""}, "--source"),
    "bad name": ({"patches": normal(40, 4, 3)}, {}, "is not named NAME.KIND.npy"),
    "a teacher named pixels": ({"pixels__patches": normal(40, 4, 3)}, {}, "and not 'pixels'"),
    "pixels alone": ({"pixels": normal(40, 8, 8, 3)}, {}, "holds pixels alone"),
    "nothing": ({}, {}, "must hold npy files"),
    "pixels": (
        {"t__patches": normal(40, 4, 3), "pixels": normal(40, 8, 8, 3)},
        {},
        "pixels are float32",
    ),
}


@pytest.mark.parametrize(("arrays", "options", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_made(
    arrays: dict[str, Any], options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "feats", **arrays)
    with pytest.raises(UsageError, match=what):
        import_features(folder, tmp_path / "c", **{"source": "s", **options})
    assert not store.exists(tmp_path / "c")


def test_ids_that_do_not_fit_are_refused(make_cache: CacheFactory, tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(40, 4, 3))
    with pytest.raises(CacheMismatch, match="none of the ids is in"):
        import_features(folder, make_cache().path, source="s")
    (folder / "ids.txt").write_text("same\n" * 40)
    with pytest.raises(UsageError, match="lists 'same' 40 times"):
        import_features(folder, tmp_path / "c", source="s")
    (folder / "ids.txt").unlink()
    with pytest.raises(UsageError, match=r"neither ids.parquet nor ids.txt"):
        import_features(folder, tmp_path / "c", source="s")
    pq.write_table(pa.table({"name": ["a"] * 40}), folder / "ids.parquet")
    with pytest.raises(UsageError, match="no column 'id'; it has name"):
        import_features(folder, tmp_path / "c", source="s")


def test_features_of_other_bytes_under_an_id_are_refused(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=40)
    export_features(cache, tmp_path / "out", teachers=("b",))
    for path in (tmp_path / "out").glob("b.*"):
        path.rename(path.with_name(path.name.replace("b.", "new.", 1)))
    table = pq.read_table(tmp_path / "out" / "ids.parquet", use_threads=False)
    hashes = table["sha256"].to_pylist()
    hashes[20] = "0" * 64
    number = table.column_names.index("sha256")
    pq.write_table(
        table.set_column(number, "sha256", pa.array(hashes)), tmp_path / "out" / "ids.parquet"
    )
    with pytest.raises(CacheMismatch, match=r"row 20: .* sha256 0000"):
        import_features(tmp_path / "out", cache.path, source="s")


def test_pickles_and_headers_that_lie_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "feats")
    np.save(folder / "t.patches.npy", np.array([{"a": 1}] * 40), allow_pickle=True)
    with pytest.raises(UsageError, match="not a readable npy file"):
        import_features(folder, tmp_path / "c", source="s")
    (folder / "t.patches.npy").unlink()
    (folder / "ids.txt").unlink()
    header = io.BytesIO()
    shape = (2**40, 2**10)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    for data in (header.getvalue(), b"\x93NUMPY", b"not an array"):
        with tarfile.open(folder / "x.tar", "w") as tar:
            member = tarfile.TarInfo("0.t.patches.npy")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        with pytest.raises(UsageError, match="not a readable npy file"):
            import_features(folder, tmp_path / "c", source="s")
    (folder / "x.tar").unlink()
    folder = write(tmp_path / "feats", t__patches=normal(40, 4, 3))
    (folder / "features.json").write_text('{"teachers": 3}')
    with pytest.raises(SourceError, match=r"features.json is not what"):
        import_features(folder, tmp_path / "c", source="s")


TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": pa.array([None, "b"], pa.string())}, "1 of the rows have no id"),
    "views in words": ({"id": ["a", "b"], "view": ["x", "y"]}, "view must be a whole number"),
    "no view": ({"id": ["a", "b"], "view": pa.array([None, 1], pa.int32())}, "view must be"),
    "half a view": ({"id": ["a", "b"], "view": [0.0, 0.5]}, "view must be a whole number"),
    "sizes in words": ({"id": ["a", "b"], "size": ["10", "20"]}, "'10' must be 2 whole numbers"),
    "sizes that are no pairs": ({"id": ["a", "b"], "size": [[1], [2]]}, "must be 2 whole numbers"),
}


@pytest.mark.parametrize(("columns", "what"), TABLES.values(), ids=TABLES.keys())
def test_a_table_that_makes_no_sense_is_refused(
    columns: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(2, 4, 3))
    pq.write_table(pa.table(columns), folder / "ids.parquet")
    with pytest.raises(UsageError, match=what):
        import_features(folder, tmp_path / "c", source="s")


def test_a_table_that_is_none_and_a_tar_without_samples_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(40, 4, 3))
    (folder / "ids.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match="is not a readable parquet table"):
        import_features(folder, tmp_path / "c", source="s")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(bytes(1024))
    with pytest.raises(UsageError, match="the features have no rows"):
        import_features(tmp_path / "tars", tmp_path / "c", source="s")
