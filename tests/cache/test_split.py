"""G25: the side of a row is decided once and never moves, whatever happens to the cache."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import phistill.cache as store
from phistill.cache import HELDOUT, TRAIN, Cache, CacheInfo, ImageFacts, TeacherInfo
from phistill.cache.format.split import is_heldout
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.merge import merge
from phistill.cache.upkeep.remove import remove_images, remove_teacher
from phistill.cache.upkeep.stage import Selection, stage
from phistill.cache.upkeep.verify import discard, verify

Sides = dict[tuple[str, int], bool]
"""(image, view) to whether it is held out."""

HOLDOUT = 0.4
SHARD_ROWS = 4
TEACHER = TeacherInfo(name="t", grid=(1, 1), widths={"patches": 2})
OTHER = TeacherInfo(name="later", grid=(1, 1), widths={"patches": 3})


def sha256_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def table(names: list[str], splits: list[str | None] | None, start: int, view: int = 0) -> pa.Table:
    num = len(names)
    columns: dict[str, Any] = {
        "row": np.arange(start, start + num),
        "id": names,
        "view": np.full(num, view, np.int32),
        "uri": names,
        "offset": np.full(num, -1),
        "length": np.full(num, -1),
    }
    if splits is not None:
        columns["split"] = pa.array(splits, pa.string())
    return pa.table(columns)


def fill(cache: Cache) -> None:
    """Commit every shard that is missing; an image's bytes are its name."""
    index: Any = cache.index()
    by_row = dict(zip(index["row"].to_pylist(), index["id"].to_pylist(), strict=True))
    for owner in cache.owners:
        for shard in cache.missing_shards(owner):
            rows = range(*cache.info.shard_range(shard))
            num = len(rows)
            arrays = {
                kind: np.zeros((num, *shape), np.float16)
                for kind, shape in cache.shapes(owner).items()
            }
            images = ImageFacts.of(
                sha256=tuple(sha256_of(by_row[row]) for row in rows),
                size=((1, 1),) * num,
                box=((0, 0, 1, 1),) * num,
            )
            cache.commit_shard(owner, shard, arrays, images=images, reasons={}, environment={})


def names_of(word: str, num: int) -> list[str]:
    return [f"{word}-{number}" for number in range(num)]


def given(num: int) -> list[str | None]:
    """A split against the hash as often as not, and missing for some."""
    return [(HELDOUT, TRAIN, TRAIN, None, HELDOUT)[number % 5] for number in range(num)]


def new_cache(path: Path, word: str, *, has_split: bool, num: int = 10) -> Cache:
    info = CacheInfo(
        seed=3,
        shard_rows=SHARD_ROWS,
        holdout=HOLDOUT,
        pixel_size=0,
        views=({"kind": "resize"},),
        decode={},
    )
    cache = store.create(
        path, info, table(names_of(word, num), given(num) if has_split else None, 0)
    )
    cache.add_teacher(TEACHER)
    fill(cache)
    return cache


def sides(cache: Cache) -> Sides:
    index: Any = cache.index()
    held = set(cache.rows(split=HELDOUT).tolist())
    train = set(cache.rows(split=TRAIN).tolist())
    assert not held & train
    assert held | train == set(cache.rows(split="all").tolist())
    keys = zip(
        index["row"].to_pylist(), index["id"].to_pylist(), index["view"].to_pylist(), strict=True
    )
    return {(name, view): row in held for row, name, view in keys if row in held | train}


def append(cache: Cache, has_split: bool, path: Path) -> Cache:
    names = names_of(path.name, 6)
    add_segment(cache, table(names, given(6) if has_split else None, cache.info.next_row))
    fill(cache)
    return cache


def merged(cache: Cache, has_split: bool, path: Path) -> Cache:
    other = new_cache(path, path.name, has_split=has_split, num=7)
    for number in range(1, len(cache.info.views)):  # only equal caches merge
        add_view(other, number)
    if OTHER.name in cache.teachers:
        other.add_teacher(OTHER)
        fill(other)
    merge(cache, other)
    return cache


def add_view(cache: Cache, number: int) -> None:
    index: Any = cache.index()
    first = index.filter(pc.equal(index["view"], 0))
    splits = first["split"].to_pylist() if "split" in first.column_names else None
    lines = table(first["id"].to_pylist(), splits, cache.info.next_row, view=number)
    add_segment(cache, lines, views=({"kind": "crop", "number": number},))
    fill(cache)


def further_views(cache: Cache, path: Path) -> Cache:
    add_view(cache, len(cache.info.views))
    return cache


def without_an_image(cache: Cache, path: Path) -> Cache:
    left = sorted({name for name, _ in sides(cache)})
    remove_images(cache, [left[len(left) // 2]])
    return cache


def compacted(cache: Cache, path: Path) -> Cache:
    without_an_image(cache, path)
    return compact(cache, str(path), drop_removed=True).cache


def staged(cache: Cache, path: Path) -> Cache:
    return stage(cache, path).cache


def staged_training_rows(cache: Cache, path: Path) -> Cache:
    return stage(cache, path, Selection(split=TRAIN)).cache


def another_teacher(cache: Cache, path: Path) -> Cache:
    if OTHER.name not in cache.teachers:
        cache.add_teacher(OTHER)
        fill(cache)
    return cache


def only_the_later_teacher(cache: Cache, path: Path) -> Cache:
    another_teacher(cache, path)
    remove_teacher(cache, TEACHER.name)
    cache.add_teacher(TEACHER)
    fill(cache)
    return cache


def repaired(cache: Cache, path: Path) -> Cache:
    file = next(p for p in cache.files.walk() if "/c/" in p)
    cache.files.delete(file)
    discard(cache, verify(cache))
    fill(cache)
    return cache


OPERATIONS: dict[str, Callable[[Cache, Path], Cache]] = {
    "append": lambda cache, path: append(cache, False, path),
    "append with a split": lambda cache, path: append(cache, True, path),
    "merge": lambda cache, path: merged(cache, False, path),
    "merge with a split": lambda cache, path: merged(cache, True, path),
    "add views": further_views,
    "remove": without_an_image,
    "compact": compacted,
    "stage": staged,
    "stage the training rows": staged_training_rows,
    "add a teacher": another_teacher,
    "replace a teacher": only_the_later_teacher,
    "repair": repaired,
}
PAIRS = list(itertools.product(OPERATIONS, OPERATIONS))


@pytest.mark.guarantee("G25", f"{len(PAIRS)} pairs of operations: every row on the side it was on")
@pytest.mark.parametrize("has_split", [False, True], ids=["by hash", "given"])
def test_no_operation_moves_a_row_to_the_other_side(has_split: bool, tmp_path: Path) -> None:
    for number, pair in enumerate(PAIRS):
        cache = new_cache(tmp_path / f"{number}-start", "first", has_split=has_split)
        known = sides(cache)
        for step, name in enumerate(pair):
            cache = OPERATIONS[name](cache, tmp_path / f"{number}-{step}")
            for now in (sides(cache), sides(Cache(cache.files))):
                moved = {key for key in now if key in known and now[key] != known[key]}
                assert not moved, (pair, moved)
            known |= now


@pytest.mark.parametrize("has_split", [False, True])
def test_the_given_side_wins_and_the_hash_decides_the_rest(has_split: bool, tmp_path: Path) -> None:
    cache = new_cache(tmp_path / "c", "image", has_split=has_split, num=20)
    expected = {}
    for name, split in zip(names_of("image", 20), given(20), strict=True):
        by_hash = is_heldout(sha256_of(name), seed=3, fraction=HOLDOUT)
        expected[name, 0] = split == HELDOUT if has_split and split else by_hash
    assert sides(cache) == expected
    assert set(expected.values()) == {False, True}


def test_rows_added_with_a_split_leave_the_others_where_the_hash_put_them(tmp_path: Path) -> None:
    cache = new_cache(tmp_path / "c", "old", has_split=False)
    before = sides(cache)
    names = names_of("new", 5)
    add_segment(cache, table(names, given(5), cache.info.next_row))
    fill(cache)
    after = sides(cache)
    assert {key: after[key] for key in before} == before
    assert any(before.values())
    assert [after[name, 0] for name in names[:3]] == [True, False, False]


def test_a_later_owner_takes_over_the_sides_of_the_first(tmp_path: Path) -> None:
    """Of one row there is one truth, whoever reads the image again."""
    cache = new_cache(tmp_path / "c", "image", has_split=False)
    first = cache.facts_of(0)
    assert first is not None
    cache.add_teacher(OTHER)
    facts = first.decided(~first.heldout)
    arrays = {"patches": np.zeros((SHARD_ROWS, 1, 3), np.float16)}
    later = cache.commit_shard("later", 0, arrays, images=facts, reasons={}, environment={})
    assert later.facts == cache.commits("t")[0].facts == first.digest != facts.digest
