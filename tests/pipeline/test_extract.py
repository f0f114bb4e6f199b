"""Extraction pairs each image with its own features, once, whatever happens in between."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import phistill.cache as store
from phistill.errors import CacheMismatch, LockHeld, TooManyRejects, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.decode.views import View
from phistill.report.extraction import summary_text

SETTINGS = CacheSettings(pixel_size=16, shard_rows=8, seed=1)


@pytest.mark.guarantee("G12", "0 mismatched (id, feature) pairs")
def test_every_row_holds_the_features_of_its_own_image(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    report = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    cache = report.cache
    index = cache.index().to_pydict()
    rows = cache.rows(split="all")
    assert rows.size == 40
    patches = cache.reader("t", "patches").read(rows)
    for row, values in zip(rows.tolist(), patches, strict=True):
        with Image.open(folder / index["id"][row]) as image:
            small = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
        scaled = np.asarray(small, np.float64) / 255.0 * 2.0 - 1.0
        means = scaled.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)).reshape(16, 3)
        # float16 keeps 11 bits of values below 1.
        np.testing.assert_allclose(values[:, :3], means, atol=2**-11)


def test_a_corrupt_image_is_a_reject_with_a_reason(folder: Path, tiny: str, tmp_path: Path) -> None:
    report = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    assert report.rejects == (("cats/broken.png", "cannot be decoded: cannot identify image file"),)


def test_features_that_float16_holds_badly_are_named_at_the_end(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    report = extract(folder, tmp_path / "c", [f"far={tiny}?mean=-100", f"near={tiny}"])
    assert [(one.teacher, one.kind) for one in report.coarse] == [("far", "patches")]
    assert report.coarse[0].channels.num >= 3
    assert "far patches: warning:" in summary_text(report, str(folder), None, None)


def test_a_second_run_does_no_work(folder: Path, tiny: str, tmp_path: Path) -> None:
    first = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    before = first.cache.digest()
    second = extract(folder, tmp_path / "c", [f"t={tiny}"])
    assert first.num_shards == 12
    assert second.num_shards == 0
    assert second.cache.digest() == before


def test_a_teacher_added_later_makes_the_same_cache(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    both = [f"t={tiny}", f"u={tiny}?scale=2"]
    at_once = extract(folder, tmp_path / "c", both, settings=SETTINGS)
    extract(folder, tmp_path / "d", both[:1], settings=SETTINGS)
    later = extract(folder, tmp_path / "d", both[1:])
    assert later.cache.digest() == at_once.cache.digest()


def test_another_teacher_under_the_same_name_is_refused_with_the_field(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    with pytest.raises(CacheMismatch, match=r"teacher 't': scale is 1\.0 there, 3\.0 here"):
        extract(folder, tmp_path / "c", [f"t={tiny}?scale=3"])


def test_other_settings_are_refused_with_the_field(folder: Path, tiny: str, tmp_path: Path) -> None:
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    with pytest.raises(CacheMismatch, match="seed=1, but this run asks for 2"):
        extract(folder, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(seed=2))


def test_changed_images_are_refused_when_a_teacher_is_added(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    name = cache.index()["id"][0].as_py()
    Image.new("RGB", (30, 30)).save(folder / name)
    with pytest.raises(
        CacheMismatch, match=rf"image {re.escape(name)} \(row 0\), read for u, is not the one"
    ):
        extract(folder, tmp_path / "c", [f"u={tiny}?scale=2"])


@pytest.mark.guarantee("G16", "NaN, infinity, overflow: rejects, never stored")
def test_non_finite_features_are_rejects_and_never_stored(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "red.png")
    cache = extract(folder, tmp_path / "c", [f"t={tiny}?poison=0.9"], settings=SETTINGS).cache
    reasons = dict(extract(folder, tmp_path / "c").rejects)
    assert reasons["red.png"] == "t/patches holds NaN or infinity"
    patches = cache.reader("t", "patches").read(cache.rows(split="all"))
    assert np.isfinite(patches).all()


@pytest.mark.guarantee("G15", "the run stops with the budget named")
def test_more_rejects_than_the_budget_stop_the_run(folder: Path, tiny: str, tmp_path: Path) -> None:
    for number in range(20):
        (folder / f"bad-{number}.jpg").write_bytes(b"x" * number)
    for _ in range(8):  # a queue that repeats the command until it succeeds
        with pytest.raises(TooManyRejects, match=r"of 61 rows were rejected, more than .* 10"):
            extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    allowed = ExtractOptions(max_reject_frac=0.5)
    report = extract(folder, tmp_path / "c", options=allowed)
    assert (len(report.rejects), report.missing_shards) == (21, ())
    with pytest.raises(TooManyRejects):
        extract(folder, tmp_path / "c")


def test_a_center_crop_keeps_proportions(folder: Path, tiny: str, tmp_path: Path) -> None:
    settings = CacheSettings(pixel_size=16, shard_rows=8, views=(View("center-crop"),))
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=settings).cache
    for shard in cache.commits("t"):
        images = cache.facts_of(shard)
        assert images is not None
        for size, box in zip(images.sizes(), images.boxes(), strict=True):
            if size is not None and box is not None:
                assert box[2] - box[0] == box[3] - box[1] == min(size)
    other = CacheSettings(views=(View("resize"), View("center-crop", flip="yes")))
    with pytest.raises(
        CacheMismatch, match=r"views='center-crop', .*'resize, center-crop\?flip=yes'"
    ):
        extract(folder, tmp_path / "c", settings=other)


def test_a_second_writer_is_refused_naming_the_first(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    with cache.writing(), pytest.raises(LockHeld, match=f"process {os.getpid()} on"):
        extract(folder, tmp_path / "c", [f"t={tiny}"])


def test_two_teachers_need_two_names(folder: Path, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two teachers are named 't'"):
        extract(folder, tmp_path / "c", [f"t={tiny}", f"t={tiny}?scale=2"])


@pytest.mark.guarantee(
    "G3", "SIGKILL, SIGTERM (143), SIGINT (130): out within 10 s, same digest after resuming"
)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_an_extraction_stopped_half_way_ends_as_an_uninterrupted_one(
    number: signal.Signals, code: int, folder: Path, tiny: str, tmp_path: Path
) -> None:
    slow = f"t={tiny}?pause=0.1"  # or the run may be over before the signal comes
    whole = extract(folder, tmp_path / "whole", [slow], settings=SETTINGS).cache
    target = tmp_path / "stopped"
    command = [sys.executable, "-m", "phistill", "extract", str(folder), "--cache", str(target)]
    command += ["--teacher", slow, "--pixel-size", "16", "--shard-rows", "8", "--seed", "1"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(target.glob("commits/*/*.json"))) < 3:
        time.sleep(0.001)
    process.send_signal(number)
    begun = time.monotonic()
    _, said = process.communicate()
    assert time.monotonic() - begun < 10.0  # G3
    assert process.returncode == code, "the run ended before it could be stopped"
    if code > 0:
        assert "run the same command again to go on" in said
    assert len(store.open(target).missing_shards("t")) > 0
    resumed = extract(folder, target, [slow], settings=SETTINGS)
    assert resumed.cache.digest() == whole.digest()
    assert not list(target.rglob("*.partial"))


@pytest.mark.guarantee("G7", "only damaged shards are extracted again, same digest")
def test_repair_extracts_only_damaged_shards_and_restores_the_digest(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    before = cache.digest()
    damaged = cache.path / "teachers/t/patches/c/2/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (cache.path / "pixels/c/4/0/0/0").unlink()
    (cache.path / "commits/t/000001.json").write_bytes(b"{}")
    report = extract(folder, tmp_path / "c", options=ExtractOptions(repair=True))
    assert report.num_repaired == report.num_shards == 3
    assert report.cache.digest() == before


def test_new_images_are_named_and_appended_when_asked(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    old = {path: path.read_bytes() for path in cache.path.rglob("c/*/0*") if path.is_file()}
    heldout = set(cache.rows(split="heldout").tolist())
    for number in range(10):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"new-{number}.png")
    assert extract(folder, tmp_path / "c").num_new_images == 10
    report = extract(folder, tmp_path / "c", options=ExtractOptions(append=True))
    assert report.num_new_images == 0
    grown = report.cache
    assert [segment.start for segment in grown.info.segments] == [0, 48]
    assert grown.rows(split="all").size == 50
    assert {path: path.read_bytes() for path in old} == old
    assert heldout <= set(grown.rows(split="heldout").tolist())
    assert grown.reader("t", "patches").read(grown.rows(split="all")).shape[0] == 50


def test_a_time_limit_ends_the_run_after_a_shard_and_the_next_goes_on(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    limit = ExtractOptions(time_limit_s=1e-9)
    first = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=limit)
    assert first.out_of_time
    second = extract(folder, tmp_path / "c")
    assert not second.out_of_time
    assert second.cache.digest() == whole.digest()


def test_two_views_of_an_image_are_two_rows_from_one_decode(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    views = (View("resize"), View("random-resized-crop", flip="random"))
    settings = CacheSettings(pixel_size=16, shard_rows=8, views=views, seed=3)
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=settings).cache
    index = cache.index().to_pydict()
    assert index["id"][::2] == index["id"][1::2]
    assert index["view"][:2] == [0, 1]
    heldout = set(cache.rows(split="heldout").tolist())
    assert heldout
    assert all(row ^ 1 in heldout for row in heldout), "views of an image share its split"
    again = extract(folder, tmp_path / "d", [f"t={tiny}"], settings=settings).cache
    assert again.digest() == cache.digest()


def test_a_file_of_ids_decides_what_is_held_out(folder: Path, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("cats/001.png\ndogs/000.jpg\n")
    options = ExtractOptions(holdout_file=tmp_path / "held.txt")
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options).cache
    ids = cache.index()["id"].to_pylist()
    assert {ids[row] for row in cache.rows(split="heldout")} == {"cats/001.png", "dogs/000.jpg"}


def test_two_layers_of_one_model_extracted_together_equal_those_extracted_apart(
    folder: Path, tmp_path: Path
) -> None:
    model = "timm:vit_tiny_patch16_224?random=1&size=32"
    last, middle = f"last={model}", f"middle={model}&layer=-6"
    together = extract(folder, tmp_path / "c", [last, middle], settings=SETTINGS).cache
    extract(folder, tmp_path / "d", [last], settings=SETTINGS)
    apart = extract(folder, tmp_path / "d", [middle]).cache
    assert together.digest() == apart.digest()


@pytest.mark.parametrize(
    ("settings", "teacher"),
    [
        (CacheSettings(pixel_size=0), "module:no_such_module:build"),
        (CacheSettings(pixel_size=0), "timm:vit_small_patch15_224"),
    ],
)
def test_a_teacher_that_cannot_be_built_leaves_no_folder(
    folder: Path, tmp_path: Path, settings: CacheSettings, teacher: str
) -> None:
    with pytest.raises(UsageError):
        extract(folder, tmp_path / "c", [teacher], settings=settings)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "wrong", [{"shard_rows": 3}, {"pixel_size": -1}, {"holdout": 1.5}, {"compression": "zip"}]
)
def test_settings_that_no_cache_can_have_are_refused_before_anything_is_made(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(UsageError):
        CacheSettings(**wrong)
