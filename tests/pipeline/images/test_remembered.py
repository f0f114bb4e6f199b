"""What images were read as is remembered in the cache, with the counts of what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from click.testing import CliRunner

from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.stage import stage
from phistill.cli import main
from phistill.pipeline import CacheSettings, ExtractOptions, SourceOptions, extract
from phistill.pipeline.exchange.import_features import import_features
from phistill.pipeline.images.folder import FolderSource
from phistill.pipeline.recheck import recheck
from phistill.report.inspection import describe, render
from tests.pipeline.images.test_left_out import picture, tar

SETTINGS = CacheSettings(pixel_size=0, holdout=0.0)
MEMBERS = ("0.jpg", "0.seg.jpg", "1.jpg", "1.seg.jpg", "1.npy", "._1.jpg")


def shards(root: Path) -> Path:
    """A folder with one tar of two samples with a mask each, and two image files."""
    root.mkdir()
    tar(root / "0.tar", *MEMBERS)
    (root / "a.jpg").write_bytes(picture())
    (root / "b.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("x")
    return root


def test_growth_and_comparison_read_the_same_without_being_told(tiny: str, tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    asked = SourceOptions(kind="tar", member="seg.jpg")
    options = ExtractOptions(source=asked)
    extract(root, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    tar(root / "1.tar", "2.jpg", "2.seg.jpg")
    cache = extract(root, tmp_path / "c", options=ExtractOptions(append=True)).cache
    assert sorted(cache.index()["id"].to_pylist()) == [
        "0.tar/0.seg.jpg", "0.tar/1.seg.jpg", "1.tar/2.seg.jpg",
    ]  # fmt: skip
    assert [report.agrees for report in recheck(cache, root, 3)] == [True]
    first, second = cache.info.sources
    assert (first["num_images"], first["num_known"]) == (2, 0)
    assert (second["num_images"], second["num_known"]) == (1, 2)
    assert second["member"] == "seg.jpg"
    # Another form of the same images is taken as it is.
    (tmp_path / "list.txt").write_text("d/0.tar\nd/1.tar\n")
    assert extract(tmp_path / "list.txt", tmp_path / "c").num_new_images == 0


def test_inspect_accounts_for_every_file(tiny: str, tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    cache = extract(
        root, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS,
        options=ExtractOptions(source=SourceOptions(kind="folder")),
    ).cache  # fmt: skip
    (source,) = describe(cache)["sources"]
    assert source["left_out"] == {".tar files": 1, ".txt files": 1}
    assert (source["num_listed"], source["num_images"]) == (4, 2)
    assert describe(cache)["rejects"]["rows"] == 1
    assert (
        "images, read as folder: 4 listed = 2 taken + 2 left out (1 .tar files, 1 .txt files)"
        in render(describe(cache))
    )
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "c"), "--json"])
    assert json.loads(done.stdout)["sources"] == [source]


def test_copies_and_merges_keep_the_counts(tiny: str, tmp_path: Path) -> None:
    caches = []
    for name in ("x", "y"):
        root = tmp_path / name
        root.mkdir()
        tar(root / f"{name}.tar", *MEMBERS)
        caches.append(extract(root, tmp_path / f"c{name}", [f"t={tiny}"], settings=SETTINGS).cache)
    ours, theirs = caches
    listed = theirs.info.sources
    merge(ours, theirs)
    assert ours.info.sources[1:] == listed
    merge(ours, theirs)
    assert len(ours.info.sources) == 2
    assert stage(ours, tmp_path / "small").cache.info.sources == ours.info.sources


def test_pixels_of_imported_features_are_read_with_the_same_options(tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    features = tmp_path / "f"
    features.mkdir()
    np.save(features / "t.patches.npy", np.random.default_rng(0).random((2, 4, 3), np.float32))
    (features / "ids.txt").write_text("0.tar/0.seg.jpg\n0.tar/1.seg.jpg\n")
    asked = SourceOptions(kind="tar", member="seg.jpg")
    settings = CacheSettings(pixel_size=8)
    report = import_features(
        features, tmp_path / "c", source="x", images=root, source_options=asked, settings=settings
    )
    assert report.num_rejects == 0
    assert report.cache.info.sources[0]["member"] == "seg.jpg"
    report.cache.forget_shard("pixels", 0)
    again = import_features(features, tmp_path / "c", source="x", images=root)
    assert (again.num_shards, again.num_rejects) == (1, 0)


def test_a_run_that_goes_on_does_not_list_its_images_again(tiny: str, tmp_path: Path) -> None:
    class Watched(FolderSource):
        num_listed = 0

        def records(self) -> pa.Table:
            self.num_listed += 1
            return super().records()

    root = shards(tmp_path / "d")
    source = Watched(root)
    cache = extract(source, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    assert source.num_listed == 1
    cache.forget_shard("t", 0)
    (root / "new.jpg").write_bytes(picture())
    again = extract(source, tmp_path / "c")
    assert (again.num_shards, again.num_new_images, source.num_listed) == (1, 0, 1)
    assert again.left_out == {".tar files": 1, ".txt files": 1}
    extract(source, tmp_path / "c", [f"other={tiny}"])
    assert source.num_listed == 1
    assert extract(source, tmp_path / "c").num_new_images == 1  # nothing else to do: looked up
    assert source.num_listed == 2
