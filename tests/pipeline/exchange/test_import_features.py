"""Features of another program become rows of a cache that follow their ids."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import phistill.cache as store
from phistill.cache.upkeep.verify import verify
from phistill.errors import CacheMismatch, IncompleteCache, TooManyRejects, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.decode.views import View
from phistill.pipeline.exchange.export_features import export_features
from phistill.pipeline.exchange.import_features import import_features
from tests.conftest import damage_record
from tests.pipeline.exchange.feature_folders import ids_of, normal, write


def test_plain_arrays_become_a_cache_whose_rows_follow_the_ids(tmp_path: Path) -> None:
    patches, summary = normal(40, 4, 3, 12), normal(40, 5)
    folder = write(tmp_path / "feats", dino__patches=patches, dino__summary=summary)
    settings = CacheSettings(seed=7, holdout=0.25, shard_rows=16)
    report = import_features(folder, tmp_path / "c", source="lab run", settings=settings)
    cache = report.cache
    assert verify(cache).findings == ()
    teacher = cache.teacher("dino")
    assert (teacher.grid, teacher.widths) == ((4, 3), {"patches": 12, "summary": 5})
    assert teacher.identity == {"source": "imported", "model": "lab run"}
    assert cache.owners == ("dino",), "no pixels were given"
    rows = cache.rows(split="all")
    order = [int(name[4:7]) for name in ids_of(cache, rows)]
    assert sorted(order) == list(range(40))
    assert order != list(range(40)), "rows are in random order"
    np.testing.assert_array_equal(
        cache.reader("dino", "patches").read(rows),
        patches.reshape(40, 12, 12)[order].astype(np.float16),
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
    values = normal(len(ids), 9, 5, dtype=np.float16)
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


def test_other_values_under_the_same_name_are_refused(tmp_path: Path) -> None:
    """Features computed anew with the same words about them: the cache must not pass for them."""
    values = normal(40, 4, 3)
    folder = write(tmp_path / "feats", t__patches=values)
    settings = CacheSettings(shard_rows=16)
    cache = import_features(folder, tmp_path / "c", source="s", settings=settings).cache
    write(tmp_path / "feats", t__patches=values + 1)
    with pytest.raises(CacheMismatch, match=r"other patches of t .*remove-teacher"):
        import_features(folder, tmp_path / "c", source="s")
    cache.forget_shard("t", 1)
    with pytest.raises(CacheMismatch, match="other patches of t"):
        import_features(folder, tmp_path / "c", source="s")
    assert cache.missing_shards("t") == [1], "a cache of both would be neither"


def test_damaged_shards_are_imported_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(40, 4, 3), u__patches=normal(40, 4, 3))
    settings = CacheSettings(shard_rows=16)
    cache = import_features(folder, tmp_path / "c", source="s", settings=settings).cache
    whole = {path: path.read_bytes() for path in (tmp_path / "c").rglob("c/*/0/0")}
    for path in list(whole)[:2]:
        path.write_bytes(b"\0" + whole[path][1:])
    report = import_features(folder, tmp_path / "c", source="s", repair=True)
    assert (report.num_repaired, report.num_shards) == (2, 2)
    assert {path: path.read_bytes() for path in whole} == whole
    assert verify(store.open(cache.path)).findings == ()
    assert import_features(folder, tmp_path / "c", source="s", repair=True).num_repaired == 0


def test_a_damaged_record_is_mended_and_extract_leaves_it_alone(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    """Neither command may need the other one to go first."""
    ids = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*g"))
    feats = tmp_path / "feats"
    feats.mkdir()
    (feats / "ids.txt").write_text("\n".join(ids) + "\n\n")
    np.save(feats / "t.patches.npy", normal(len(ids), 4, 3))
    settings = CacheSettings(pixel_size=8, shard_rows=8)
    cache = import_features(
        feats, tmp_path / "c", source="s", images=folder, settings=settings
    ).cache
    extract(folder, tmp_path / "c", [f"own={tiny}"], options=ExtractOptions(max_reject_frac=1.0))
    digest = store.open(tmp_path / "c").digest()
    for owner in ("t", "own"):
        damage_record(store.open(tmp_path / "c"), owner, 1)
    before = sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    with pytest.raises(UsageError, match=r"t of .* is damaged, and was imported"):
        extract(folder, tmp_path / "c", options=ExtractOptions(repair=True))
    assert sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file()) == before
    report = import_features(feats, tmp_path / "c", source="s", repair=True)
    assert (report.num_repaired, report.num_shards) == (2, 1)
    assert store.open(cache.path).missing_shards("own") == [1]
    assert extract(folder, tmp_path / "c").num_shards == 1
    assert store.open(tmp_path / "c").digest() == digest


def test_a_damaged_array_document_needs_no_features_to_be_mended(
    folder: Path, tmp_path: Path
) -> None:
    feats = write(tmp_path / "feats", t__patches=normal(40, 4, 3))
    cache = import_features(feats, tmp_path / "c", source="s").cache
    digest = cache.digest()
    (tmp_path / "c/teachers/t/patches/zarr.json").write_bytes(b"{")
    extract(folder, tmp_path / "c", options=ExtractOptions(repair=True))
    assert store.open(cache.path).digest() == digest


def test_a_damaged_shard_is_replaced_by_the_same_values_only(tmp_path: Path) -> None:
    values = normal(40, 4, 3)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
    folder = write(tmp_path / "feats", t__patches=values)
    np.save(folder / "pixels.npy", pixels)
    settings = CacheSettings(shard_rows=16)
    cache = import_features(folder, tmp_path / "c", source="s", settings=settings).cache
    digest = cache.digest()
    shard = tmp_path / "c/teachers/t/patches/c/1/0/0"
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    (tmp_path / "c/pixels/c/2/0/0/0").unlink()
    rows = np.arange(16, 32)
    order = [int(name[4:7]) for name in ids_of(cache, rows)]
    other = values.copy()
    other[order] += 1
    np.save(folder / "t.patches.npy", other)
    with pytest.raises(CacheMismatch, match=r"shard 1 of t was damaged, and these are not"):
        import_features(folder, tmp_path / "c", source="s", repair=True)
    assert store.open(cache.path).missing_shards("t") == [1]
    np.save(folder / "t.patches.npy", values)
    import_features(folder, tmp_path / "c", source="s", repair=True)
    assert store.open(cache.path).digest() == digest
    assert verify(store.open(cache.path)).findings == ()


def test_rows_of_images_that_a_cache_does_not_have_are_counted(tmp_path: Path) -> None:
    values = normal(40, 4, 3)
    some = write(tmp_path / "some", 30, t__patches=values[:30])
    import_features(some, tmp_path / "c", source="s")
    more = write(tmp_path / "more", u__patches=values)
    assert import_features(more, tmp_path / "c", source="s").num_unknown == 10


def test_an_export_of_an_import_says_what_the_import_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(40, 4, 3))
    cache = import_features(folder, tmp_path / "c", source="lab run").cache
    with pytest.raises(UsageError, match="lies inside"):
        export_features(cache, tmp_path / "c" / "out")
    export_features(cache, tmp_path / "out")
    again = import_features(tmp_path / "out", tmp_path / "d").cache
    assert again.teacher("t").identity == cache.teacher("t").identity
    assert import_features(tmp_path / "out", tmp_path / "c").num_shards == 0
    export_features(again, tmp_path / "out2")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "out2" / path.name).read_bytes()


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
    record = report.cache.commits("t")[0]
    (name,) = ids_of(report.cache, np.array([record.start]))
    assert (
        report.cache.committed_facts(record).hashes()[0]
        == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    )
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
    for _ in range(4):
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
