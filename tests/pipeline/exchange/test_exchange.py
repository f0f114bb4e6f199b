"""Features go out to files that other tools read, and come back the same."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from phistill.cache import Cache, TeacherInfo
from phistill.cache.upkeep.verify import verify
from phistill.cli import main
from phistill.errors import UsageError
from phistill.pipeline.exchange.export_features import export_features
from phistill.pipeline.exchange.import_features import import_features
from tests.pipeline.exchange.feature_folders import ids_of

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
    stored, original = (one.facts().take(np.arange(3)) for one in (imported, cache))
    assert stored.shows_same(original)


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
    assert "shards of pixels and teachers written" in text
    assert "teachers a" in text
    assert run("fit-stats", again)[0] == 0
    code, text = run("import-features", out, "--cache", again, "--grid", "a=4")
    assert (code, "NAME=H,W" in text) == (2, True)


@pytest.mark.parametrize(("unbiased", "said"), [(False, "nearest"), (True, "unbiased")])
def test_codes_are_exported_decoded_as_asked_for(tmp_path: Path, unbiased: bool, said: str) -> None:
    cache = Cache(Path(__file__).parents[2] / "data" / "cache-v1-coded")
    for format in ("npy", "webdataset"):
        report = export_features(cache, tmp_path / format, format=format, unbiased=unbiased)
        facts = json.loads((report.path / "features.json").read_text())
        assert facts["teachers"]["t"]["decoded"] == {"patches": said}
    rows = pq.read_table(tmp_path / "npy" / "ids.parquet")["row"].to_numpy()
    stored = np.load(tmp_path / "npy" / "t.patches.npy")
    assert np.array_equal(stored, cache.reader("t", "patches", unbiased=unbiased).read(rows))
    assert not np.array_equal(
        stored, cache.reader("t", "patches", unbiased=not unbiased).read(rows)
    )
    with tarfile.open(tmp_path / "webdataset" / "features-000000.tar") as tar:
        files = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".patches.npy")]
        first = np.load(io.BytesIO(files[0].read() if files[0] else b""))
    assert np.array_equal(first, stored[0])


def test_exact_features_are_not_decoded(make_cache: CacheFactory, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unbiased is a way to decode codes"):
        export_features(make_cache(), tmp_path / "out", unbiased=True)
