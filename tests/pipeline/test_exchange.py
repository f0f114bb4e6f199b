"""Features go out to files that other tools read, and come in from them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.errors import (
    CacheMismatch,
    IncompleteCache,
    SourceError,
    TooManyRejects,
    UsageError,
)
from phistill.cache.verify import verify
from phistill.cli import main
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.export_features import export_features
from phistill.pipeline.import_features import import_features
from phistill.pipeline.views import View

CacheFactory = Callable[..., Cache]
WITH_REGISTERS = TeacherInfo(
    name="vit.reg4",
    grid=(2, 3),
    widths={"patches": 5, "summary": 4, "registers": 5},
    num_registers=2,
    identity={"source": "timm", "model": "vit_reg4", "weights_sha256": "12"},
)
PLAIN = TeacherInfo(name="b", grid=(3, 3), widths={"patches": 7})


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cache(make_cache: CacheFactory) -> Cache:
    return make_cache(num_rows=70, rejects=[3, 40], teachers=(WITH_REGISTERS, PLAIN))


@pytest.mark.parametrize("format", ["npy", "webdataset"])
def test_what_was_exported_imports_and_exports_to_the_same_bytes(
    format: str, cache: Cache, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"format": format, "pixels": True, "rows_per_tar": 30}
    first = export_features(cache, tmp_path / "first", **options)
    assert first.num_rows == 68
    imported = import_features(first.path, tmp_path / "imported.cache").cache
    assert verify(imported).findings == ()
    again = export_features(imported, tmp_path / "again", **options)
    one, two = folder_bytes(first.path), folder_bytes(again.path)
    for name in ("features.json", "ids.parquet"):  # row numbers, and that it was imported
        one.pop(name, None)
        two.pop(name, None)
    if format == "npy":
        assert {"vit.reg4.patches.npy", "vit.reg4.registers.npy", "pixels.npy"} <= set(one)
        assert one == two
    else:
        assert samples(first.path) == samples(again.path)


def samples(folder: Path) -> list[tuple[str, bytes]]:
    """Members in order; of the lines only what does not number the rows."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".json"):
                    line = json.loads(data)
                    data = json.dumps({k: v for k, v in line.items() if k != "row"}).encode()
                found.append((member.name, data))
    return found


def test_an_imported_cache_has_the_images_split_and_labels_of_the_first(
    cache: Cache, tmp_path: Path
) -> None:
    export_features(cache, tmp_path / "out")
    imported = import_features(tmp_path / "out", tmp_path / "imported.cache").cache
    assert "split" not in imported.index().column_names, "the hash decides, for newcomers too"
    for split in ("train", "heldout"):
        rows = [c.rows(split=split) for c in (cache, imported)]
        ids = [ids_of(c, r) for c, r in zip((cache, imported), rows, strict=True)]
        assert ids[0] == ids[1]
    assert imported.index()["label"].to_pylist()[:3] == ["class-0", "class-1", "class-2"]
    identity = imported.teacher("vit.reg4").identity
    assert (identity["source"], identity["model"]) == ("imported", "timm:vit_reg4")
    assert identity["stated"] == WITH_REGISTERS.identity
    assert imported.teacher("vit.reg4").grid == (2, 3)
    stored, original = imported.commits("b")[0].images, cache.commits("b")[0].images
    assert stored.sha256[:3] == original.sha256[:3]
    assert stored.box[0] == original.box[0]


def ids_of(cache: Cache, rows: Any) -> list[str]:
    index = cache.index()
    lines = np.searchsorted(index["row"].to_numpy(), rows)
    return [index["id"][line].as_py() for line in lines.tolist()]


def test_an_export_holds_the_rows_of_a_split_and_chosen_teachers(
    cache: Cache, tmp_path: Path
) -> None:
    report = export_features(cache, tmp_path / "out", teachers=("b",), split="heldout")
    assert set(report.files) == {"b.patches.npy", "ids.parquet", "features.json"}
    rows = cache.rows(["b"], "heldout")
    values = np.load(tmp_path / "out" / "b.patches.npy")
    np.testing.assert_array_equal(values, cache.reader("b", "patches").read(rows))
    table = pq.read_table(tmp_path / "out" / "ids.parquet", use_threads=False)
    assert table["id"].to_pylist() == ids_of(cache, rows)
    assert set(table["split"].to_pylist()) == {"heldout"}
    with pytest.raises(UsageError, match="holds exported features already"):
        export_features(cache, tmp_path / "out")
    (tmp_path / "out" / "features.json").unlink()
    with pytest.raises(UsageError, match="other things"):  # somebody else's arrays, for all we know
        export_features(cache, tmp_path / "out")
    assert np.load(tmp_path / "out" / "b.patches.npy").shape == values.shape
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other things"):
        export_features(cache, tmp_path / "mine")


# ---- features of somebody else --------------------------------------------------------------


def write(folder: Path, num: int = 40, **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ids.txt").write_text("".join(f"img/{row:03d}.png\n" for row in range(num)))
    for name, values in arrays.items():
        np.save(folder / f"{name.replace('__', '.')}.npy", values)
    return folder


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def test_plain_arrays_become_a_cache_whose_rows_follow_the_ids(tmp_path: Path) -> None:
    patches, summary = normal(40, 4, 3, 6), normal(40, 5)
    folder = write(tmp_path / "feats", dino__patches=patches, dino__summary=summary)
    settings = CacheSettings(seed=7, holdout=0.25, shard_rows=16)
    report = import_features(folder, tmp_path / "c", source="lab run", settings=settings)
    cache = report.cache
    assert verify(cache).findings == ()
    teacher = cache.teacher("dino")
    assert (teacher.grid, teacher.widths) == ((4, 3), {"patches": 6, "summary": 5})
    assert teacher.identity == {"source": "imported", "model": "lab run"}
    assert cache.owners == ("dino",), "no pixels were given"
    rows = cache.rows(split="all")
    order = [int(name[4:7]) for name in ids_of(cache, rows)]
    assert sorted(order) == list(range(40))
    assert order != list(range(40)), "rows are in random order"
    np.testing.assert_array_equal(
        cache.reader("dino", "patches").read(rows),
        patches.reshape(40, 12, 6)[order].astype(np.float16),
    )
    np.testing.assert_array_equal(cache.reader("dino", "summary").read(rows), summary[order])
    assert 0 < cache.rows(split="heldout").size < 20
    assert import_features(folder, tmp_path / "c", source="lab run").num_shards == 0


def test_a_further_teacher_is_added_by_id_to_a_cache_that_was_extracted(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = extract(
        folder, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=8)
    ).cache
    ids = [name for name in cache.index()["id"].to_pylist() if "broken" not in name]
    feats = tmp_path / "feats"
    feats.mkdir()
    (feats / "ids.txt").write_text("\n".join(sorted(ids)))
    values = normal(len(ids), 9, 4, dtype=np.float16)
    np.save(feats / "other.patches.npy", values)
    report = import_features(feats, tmp_path / "c", source="elsewhere")
    assert report.num_rejects == 1, "the broken image has no features"
    assert verify(report.cache).findings == ()
    rows = report.cache.rows(["t", "other"], "all")
    positions = [sorted(ids).index(name) for name in ids_of(cache, rows)]
    np.testing.assert_array_equal(
        report.cache.reader("other", "patches").read(rows), values[positions]
    )
    again = extract(folder, tmp_path / "c")
    assert again.num_shards == 0, "nothing is missing, so an imported teacher is in nobody's way"
    report.cache.forget_shard("other", 0)
    with pytest.raises(UsageError, match=r"'other' .* was imported and cannot be run"):
        extract(folder, tmp_path / "c")
    assert import_features(feats, tmp_path / "c", source="elsewhere").num_shards == 1
    with pytest.raises(CacheMismatch, match="model is 'elsewhere' there, 'another' here"):
        import_features(feats, tmp_path / "c", source="another")


def test_images_give_the_pixels_and_the_hashes(folder: Path, tmp_path: Path) -> None:
    ids = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*g"))
    feats = tmp_path / "feats"
    feats.mkdir()
    (feats / "ids.txt").write_text("\n".join(ids))
    np.save(feats / "t.patches.npy", normal(len(ids), 4, 3))
    settings = CacheSettings(pixel_size=8)
    report = import_features(feats, tmp_path / "c", source="s", images=folder, settings=settings)
    assert report.cache.owners == ("pixels", "t")
    assert verify(report.cache).findings == ()
    assert report.cache.rows(split="all").size == len(ids) - 1, "one image is broken"
    import hashlib

    record = report.cache.commits("t")[0]
    (name,) = ids_of(report.cache, np.array([record.start]))
    assert record.images.sha256[0] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (feats / "ids.txt").write_text("\n".join([*ids[:-1], "not-there.png"]))
    with pytest.raises(UsageError, match=r"images have no 'not-there.png'"):
        import_features(feats, tmp_path / "d", source="s", images=folder, settings=settings)


def test_values_that_cannot_be_stored_are_rejects(tmp_path: Path) -> None:
    values = normal(40, 4, 3)
    values[5, 0, 0] = np.nan
    values[6, 0, 0] = 1e5
    folder = write(tmp_path / "feats", t__patches=values)
    report = import_features(folder, tmp_path / "c", source="s")
    assert report.num_rejects == 2
    reasons = [
        why for record in report.cache.commits("t").values() for why in record.reasons.values()
    ]
    assert sorted(reasons) == [
        "t/patches exceeds float16 (largest 100000)",
        "t/patches holds NaN or infinity",
    ]
    stored = report.cache.reader("t", "patches").read(report.cache.rows(split="all"))
    assert np.isfinite(stored).all()
    folder = write(tmp_path / "bad", t__patches=values * 1e6)
    with pytest.raises(TooManyRejects, match="exceeds float16"):
        import_features(folder, tmp_path / "d", source="s")
    with pytest.raises(IncompleteCache, match="`phistill import-features FEATURES --cache"):
        store.open(tmp_path / "d").require_complete()


def test_tars_of_somebody_else_import_by_key(tmp_path: Path) -> None:
    feats = tmp_path / "feats"
    feats.mkdir()
    values = normal(30, 4, 3)
    with tarfile.open(feats / "x.tar", "w") as tar:
        for row in range(30):
            data = io.BytesIO()
            np.save(data, values[row])
            member = tarfile.TarInfo(f"part/{row:03d}.model.patches.npy")
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))
    cache = import_features(feats, tmp_path / "c", source="s").cache
    rows = cache.rows(split="all")
    order = [int(name[len("part/") :]) for name in ids_of(cache, rows)]
    np.testing.assert_array_equal(
        cache.reader("model", "patches").read(rows), values[order].astype(np.float16)
    )


def test_several_views_are_matched_by_number(tmp_path: Path) -> None:
    feats = tmp_path / "feats"
    feats.mkdir()
    values = normal(40, 4, 3)
    table = pa.table(
        {"id": [f"i{row // 2}" for row in range(40)], "view": [row % 2 for row in range(40)]}
    )
    pq.write_table(table, feats / "ids.parquet")
    np.save(feats / "t.patches.npy", values)
    with pytest.raises(UsageError, match="2 views of an image, and 1 are described"):
        import_features(feats, tmp_path / "c", source="s")
    settings = CacheSettings(views=(View(), View(flip="yes")))
    cache = import_features(feats, tmp_path / "c", source="s", settings=settings).cache
    index, rows = cache.index(), cache.rows(split="all")
    positions = [
        2 * int(name[1:]) + view
        for name, view in zip(index["id"].to_pylist(), index["view"].to_pylist(), strict=True)
    ]
    np.testing.assert_array_equal(
        cache.reader("t", "patches").read(rows), values[positions].astype(np.float16)
    )


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


def test_the_commands_export_and_import(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache = str(make_cache(num_rows=40).path)

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(args))
        return result.exit_code, result.output

    out, again = str(tmp_path / "out"), str(tmp_path / "again.cache")
    code, text = run("export-features", cache, out, "--teachers", "a", "--pixels")
    assert code == 0, text
    assert "40 rows in a.patches.npy" in text
    code, text = run("import-features", out, "--cache", again)
    assert code == 0, text
    assert "teachers a" in text
    assert run("fit-stats", again)[0] == 0
    code, text = run("import-features", out, "--cache", again, "--grid", "a=4")
    assert (code, "NAME=H,W" in text) == (2, True)
