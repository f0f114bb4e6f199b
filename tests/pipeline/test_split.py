"""G25 through the command's own code: images that come later leave the others on their side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phistill.cache import HELDOUT, Cache
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.decode.views import View

SETTINGS = CacheSettings(pixel_size=16, shard_rows=8, seed=1, holdout=0.3)
APPEND = ExtractOptions(append=True)


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def without_split(tmp_path: Path) -> Path:
    for number in range(30):
        put(tmp_path / f"plain/{number}.png", number)
    return tmp_path / "plain"


@pytest.fixture
def with_split(tmp_path: Path) -> Path:
    for number in range(9):
        put(tmp_path / f"parts/{('train', 'val')[number % 3 == 0]}/p{number}.png", 100 + number)
    return tmp_path / "parts"


def held_out(cache: Cache) -> set[str]:
    index = cache.index().to_pydict()
    held = set(Cache(cache.files).rows(split=HELDOUT).tolist())
    return {name for row, name in zip(index["row"], index["id"], strict=True) if row in held}


def test_images_with_a_split_of_their_own_move_no_image_that_was_there(
    without_split: Path, with_split: Path, tiny: str, tmp_path: Path
) -> None:
    first = extract(without_split, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    before = held_out(first)
    assert 3 <= len(before) <= 15
    second = extract(with_split, tmp_path / "c", options=APPEND).cache
    assert held_out(second) == before | {"val/p0.png", "val/p3.png", "val/p6.png"}


def test_images_without_a_split_come_to_those_that_have_one_and_the_hash_decides_for_them(
    without_split: Path, with_split: Path, tiny: str, tmp_path: Path
) -> None:
    alone = held_out(
        extract(without_split, tmp_path / "alone", [f"t={tiny}"], settings=SETTINGS).cache
    )
    first = extract(with_split, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    assert held_out(first) == {"val/p0.png", "val/p3.png", "val/p6.png"}
    second = extract(without_split, tmp_path / "c", options=APPEND).cache
    assert held_out(second) == held_out(first) | alone


def test_an_image_whose_split_is_empty_goes_by_its_hash(tiny: str, tmp_path: Path) -> None:
    images = []
    for number in range(24):
        put(tmp_path / f"one/{number}.png", number)
        images.append((tmp_path / f"one/{number}.png").read_bytes())

    def table(path: Path, splits: list[str | None] | None) -> Path:
        columns = {"image": images, "id": [str(number) for number in range(24)]}
        if splits is not None:
            columns["split"] = splits
        pq.write_table(pa.table(columns), path)
        return path

    plain = table(tmp_path / "plain.parquet", None)
    mixed = table(tmp_path / "mixed.parquet", ["train", "validation", None] * 8)
    by_hash = held_out(extract(plain, tmp_path / "a", [f"t={tiny}"], settings=SETTINGS).cache)
    cache = extract(mixed, tmp_path / "b", [f"t={tiny}"], settings=SETTINGS).cache
    given = {str(number) for number in range(24) if number % 3 == 1}
    unsaid = {str(number) for number in range(24) if number % 3 == 2}
    assert held_out(cache) == given | (by_hash & unsaid)


def test_further_views_and_teachers_stand_on_the_side_of_their_image(
    without_split: Path, with_split: Path, tiny: str, tmp_path: Path
) -> None:
    extract(without_split, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    before = held_out(extract(with_split, tmp_path / "c", options=APPEND).cache)
    for folder in (without_split, with_split):  # one source that holds all of them
        for path in folder.rglob("*.png"):
            target = tmp_path / "all" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    views = CacheSettings(views=(View(), View("resize", flip="yes")))
    further = ExtractOptions(add_views=True)
    extract(tmp_path / "all", tmp_path / "c", settings=views, options=further)
    cache = extract(tmp_path / "all", tmp_path / "c", [f"later={tiny}"]).cache
    assert cache.rows(split="all").size == 78
    assert held_out(cache) == before
