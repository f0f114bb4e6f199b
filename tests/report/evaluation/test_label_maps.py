"""A dense probe on label maps: of files and of transparency, in the view that the cache shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.cli import main
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.decode.views import View
from phistill.report.evaluation.label_maps import label_maps
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train
from phistill.train.evaluation.index import column

Config = Callable[..., TrainConfig]
NUM = 96


def draw(folder: Path) -> None:
    """Red squares on dark ground, in colour and as maps; every eighth has a border not counted."""
    generator = np.random.default_rng(0)
    for name in ("images/some", "maps/some", "alpha"):
        (folder / name).mkdir(parents=True)
    for number in range(NUM):
        pixels = generator.integers(0, 60, (48, 64, 3)).astype(np.uint8)
        wanted = np.zeros((48, 64), np.uint8)
        top, left = generator.integers(0, 20, 2)
        wanted[top : top + 24, left : left + 32] = 1
        pixels[wanted == 1, 0] += 180
        Image.fromarray(pixels).save(folder / f"images/some/{number}.png")
        rgba = np.dstack([pixels, wanted * 255])
        Image.fromarray(rgba).save(folder / f"alpha/{number}.png")
        if number % 8 == 0:
            wanted[:4] = 255
        Image.fromarray(wanted).save(folder / f"maps/some/{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    draw(folder)
    return folder


@pytest.fixture(scope="module")
def cache(folder: Path) -> Cache:
    settings = CacheSettings(pixel_size=32, holdout=0.4)
    made = extract(folder / "images", folder / "c", ["demo:ssl"], settings=settings).cache
    fit_stats(made)
    return made


def iou(run: Path, where: object) -> dict[str, dict[str, float]]:
    done = CliRunner().invoke(
        main, ["evaluate", str(run), "--device", "cpu", "--json", "--masks", str(where)]
    )
    assert done.exit_code == 0, done.output
    tasks = json.loads(done.stdout)["tasks"]
    return {one["features"]: one for one in tasks if one["task"] == "mean IoU"}


def test_a_probe_of_tokens_finds_what_they_show_and_a_constant_does_not(
    cache: Cache, folder: Path, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "run", make_config(num_steps=3))
    found = iou(tmp_path / "run", folder / "maps")
    assert {*found} == {
        *("teacher ssl", "student as ssl", "student, backbone", "untrained as ssl"),
        *("untrained, backbone", "plain pixels", "constant"),
    }
    # The squares are a quarter of an image: of two classes one is found, and that too wide.
    assert 0.3 < found["constant"]["value"] < 0.45
    assert found["plain pixels"]["value"] > 0.8, "red is all that there is to find"
    assert found["teacher ssl"]["value"] > found["constant"]["value"] + 0.1
    assert all(one["low"] < one["value"] < one["high"] for one in found.values())
    assert found["constant"]["num_images"] >= 30


@pytest.mark.parametrize("view", ["resize", "center-crop", "resize?flip=yes"])
def test_a_map_lies_on_the_pixels_that_it_is_of(folder: Path, tmp_path: Path, view: str) -> None:
    settings = CacheSettings(pixel_size=32, holdout=0.4, views=(View.parse(view),))
    made = extract(folder / "images", tmp_path / "c", ["demo:ssl"], settings=settings).cache
    rows = made.rows(split="all")
    with label_maps(str(folder / "maps"), made) as read:
        maps = read(open_caches(made), rows)
    red = made.reader("pixels", "pixels").read(rows)[..., 0] > 120
    counted = maps >= 0
    assert 0.001 < 1 - counted.mean() < 0.03
    assert ((maps == 1) == red)[counted].mean() > 0.97


def test_transparency_is_a_map_of_two_classes(folder: Path, tmp_path: Path) -> None:
    settings = CacheSettings(pixel_size=32, holdout=0.4)
    made = extract(folder / "alpha", tmp_path / "c", ["demo:ssl"], settings=settings).cache
    rows = made.rows(split="all")
    with label_maps(f"alpha:{folder / 'alpha'}", made) as read:
        maps = read(open_caches(made), rows)
    for place, name in enumerate(column(open_caches(made), rows, "id")):
        with Image.open(folder / "alpha" / name) as image:
            share = np.mean(np.asarray(image)[..., 3] == 255)
        assert maps[place].mean() == pytest.approx(share, abs=0.03)


def test_maps_that_cannot_be_laid_on_an_image_are_refused(
    cache: Cache, folder: Path, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "run", make_config(num_steps=1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "colour").mkdir()
    (tmp_path / "colour/some").symlink_to(folder / "images/some")
    inside = tmp_path / "inside/some"
    inside.mkdir(parents=True)
    for path in (folder / "images/some").iterdir():
        (inside / path.name).write_bytes(path.read_bytes())
    for where, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "0 training images and 0 heldout ones have a label map"),
        (tmp_path / "colour", "0 training images"),  # outside of the folder that was given
        (tmp_path / "inside", "of mode RGB; a label map has one channel"),
    ):
        arguments = ["evaluate", str(tmp_path / "run"), "--device", "cpu", "--masks", str(where)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2, done.output
        assert message in done.output
    drawn = (View.parse("random-resized-crop"),)
    settings = CacheSettings(pixel_size=32, views=drawn)
    made = extract(folder / "images", tmp_path / "c", ["demo:ssl"], settings=settings).cache
    with (
        label_maps(str(folder / "maps"), made) as read,
        pytest.raises(UsageError, match="drawn at random"),
    ):
        read(open_caches(made), made.rows(split="all"))
