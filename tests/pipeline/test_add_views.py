"""An old cache gets further views of its images, and keeps everything it had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.cache.upkeep.remove import remove_images
from phistill.cache.upkeep.verify import verify
from phistill.cli import main
from phistill.errors import CacheMismatch, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.add_views import add_views
from phistill.pipeline.decode.views import View
from phistill.pipeline.images.source import image_records
from phistill.stats import fit_stats, load_moments
from phistill.stats.fit.partials import stored_partial
from phistill.stats.fit.pieces import PassOptions, plan_array
from phistill.train import TrainConfig
from phistill.train.data.plan import make_plan
from tests.conftest import facts, random_features

CROP = View("random-resized-crop", flip="random")


def settings(*views: View) -> CacheSettings:
    return CacheSettings(pixel_size=8, shard_rows=8, seed=3, holdout=0.3, views=views)


def grow(folder: Path, cache: Cache, *views: View, **options: Any) -> Any:
    given = ExtractOptions(add_views=True, **options)
    return extract(folder, cache.path, settings=settings(*views), options=given)


def stored(cache: Cache) -> dict[str, bytes]:
    """Every file of shards, records and partial moments."""
    return {
        path: cache.files.read(path)
        for path in cache.files.walk()
        if "/c/" in path or path.startswith("commits/") or "/part-" in path
    }


def by_view(cache: Cache, rows: Any) -> dict[tuple[str, int], int]:
    index = cache.index()
    wanted = set(rows.tolist())
    return {
        (line["id"], line["view"]): line["row"]
        for line in index.to_pylist()
        if line["row"] in wanted
    }


@pytest.fixture
def cache(folder: Path, tiny: str, tmp_path: Path) -> Cache:
    return extract(folder, tmp_path / "c", [f"t={tiny}"], settings=settings(View())).cache


def test_shards_split_and_moments_of_before_stay(folder: Path, cache: Cache) -> None:
    fit_stats(cache)
    before, split = stored(cache), {s: set(cache.rows(split=s)) for s in ("train", "heldout")}
    report = grow(folder, cache, View(), CROP, View("center-crop"))
    grown = report.cache
    assert verify(grown).findings == ()
    after = stored(grown)
    assert {path: after[path] for path in before} == before
    ids = {name for name in grown.index()["id"].to_pylist() if "broken" not in name}
    rows = by_view(grown, grown.rows(split="all"))
    assert set(rows) == {(name, view) for name in ids for view in range(3)}
    heldout = set(grown.rows(split="heldout").tolist())
    for name in ids:
        sides = {rows[name, view] in heldout for view in range(3)}
        assert len(sides) == 1, "all views of an image share its split"
    assert {r for r in heldout if r < 48} == split["heldout"]
    fit_stats(grown)
    again = load_moments(grown, "t", "patches")
    for path in (grown.path / "teachers").rglob("part-*.safetensors"):
        path.unlink()
    (grown.path / "teachers/t/moments/patches/merged.safetensors").unlink()
    fit_stats(grown)
    fresh = load_moments(grown, "t", "patches")
    assert np.array_equal(again.scatter, fresh.scatter)


def test_groups_of_shards_that_were_complete_are_not_read_for_statistics_again(
    make_cache: Callable[..., Cache],
) -> None:
    cache = make_cache(num_rows=800, shard_rows=8)
    fit_stats(cache)
    before = covered_groups(cache)
    assert len(before) > 2
    listed = image_records(cache.index()["id"], "")
    add_views(cache, [View("center-crop")], listed)
    generator = np.random.default_rng(0)
    for shard in cache.info.shards()[100:]:
        start, stop = cache.info.shard_range(shard)
        common: dict[str, Any] = {
            "images": facts(start - 800, stop - start),
            "reasons": {},
            "environment": {},
        }
        pixels = np.zeros((stop - start, 8, 8, 3), np.uint8)
        cache.commit_shard("pixels", shard, {"pixels": pixels}, **common)
        for name in cache.teachers:
            arrays = random_features(generator, cache.teacher(name), stop - start)
            cache.commit_shard(name, shard, arrays, **common)
    assert covered_groups(cache) == before[:-1], "only the last, unfinished group is new"


def covered_groups(cache: Cache) -> list[int]:
    """Groups of b's patches whose stored partial covers all that there is."""
    plan = plan_array(cache, "b", "patches", PassOptions())
    return [
        group.number
        for group in plan.groups
        if stored_partial(cache.files, plan.spec, group).num_pieces == len(group.pieces)
    ]


def test_the_new_rows_are_those_of_a_cache_made_with_all_views(
    folder: Path, cache: Cache, tiny: str, tmp_path: Path
) -> None:
    grown = grow(folder, cache, View(), CROP).cache
    whole = extract(folder, tmp_path / "w", [f"t={tiny}"], settings=settings(View(), CROP)).cache
    one, two = (by_view(c, c.rows(split="all")) for c in (grown, whole))
    assert one.keys() == two.keys()
    for owner, kind in [("pixels", "pixels"), ("t", "patches"), ("t", "summary")]:
        values = [c.reader(owner, kind) for c in (grown, whole)]
        for pair, row in one.items():
            np.testing.assert_array_equal(
                values[0].read(np.array([row])), values[1].read(np.array([two[pair]]))
            )


def test_the_same_command_again_does_nothing_and_goes_on_after_a_stop(
    folder: Path, cache: Cache
) -> None:
    stopped = grow(folder, cache, View(), CROP, time_limit_s=1e-9)
    assert stopped.out_of_time
    assert len(stopped.cache.info.views) == 2
    assert grow(folder, cache, View(), CROP).num_shards > 0
    again = grow(folder, cache, View(), CROP)
    assert (again.num_shards, len(again.cache.info.segments)) == (0, 2)


def test_new_images_get_all_views(folder: Path, cache: Cache) -> None:
    pixels = np.random.default_rng(9).integers(0, 256, (24, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cats" / "new.png")
    grown = grow(folder, cache, View(), CROP, append=True).cache
    rows = by_view(grown, grown.rows(split="all"))
    assert {view for name, view in rows if name.endswith("new.png")} == {0, 1}


def test_images_that_were_taken_down_get_no_views(folder: Path, cache: Cache) -> None:
    name = by_view(cache, cache.rows(split="all")).popitem()[0][0]
    remove_images(cache, [name])
    grown = grow(folder, cache, View(), CROP).cache
    assert grown.index()["id"].to_pylist().count(name) == 1


def test_an_epoch_takes_one_view_of_each_image(folder: Path, cache: Cache) -> None:
    images = cache.rows(split="train").size
    grown = grow(folder, cache, View(), CROP).cache
    plan = make_plan(open_caches(grown), TrainConfig(batch_size=8))
    rows = [set(plan.epoch(epoch).tolist()) for epoch in (0, 1)]
    assert [len(one) for one in rows] == [images, images]
    assert not rows[0] & rows[1], "the next epoch takes the other view"


def test_a_list_that_begins_otherwise_is_refused(folder: Path, cache: Cache) -> None:
    with pytest.raises(CacheMismatch, match="must begin with them"):
        grow(folder, cache, CROP, View())
    with pytest.raises(UsageError, match="needs every --view"):
        extract(folder, cache.path, options=ExtractOptions(add_views=True))
    with pytest.raises(CacheMismatch, match="views="):
        extract(folder, cache.path, settings=settings(View(), CROP))


def test_an_image_that_changed_since_is_named(folder: Path, cache: Cache) -> None:
    path = folder / "cats" / "001.png"
    pixels = np.zeros((24, 21, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    with pytest.raises(CacheMismatch, match=r"1 images changed .*cats/001.png"):
        grow(folder, cache, View(), CROP)


def test_images_that_are_not_there_are_refused_before_anything_changes(
    folder: Path, cache: Cache
) -> None:
    before = cache.digest()
    gone = cache.index()["id"][3].as_py()
    (folder / gone).unlink()
    with pytest.raises(UsageError, match=rf"lack 1 of the .* for example '{gone}'"):
        grow(folder, cache, View(), CROP)
    assert Cache(cache.path).digest() == before


def test_the_command_adds_views(folder: Path, cache: Cache) -> None:
    args = ["extract", str(folder), "--cache", str(cache.path), "--view", "resize"]
    more = [*args, "--view", "center-crop"]
    wrong = CliRunner().invoke(main, more)
    assert wrong.exit_code == 1
    assert "--add-views" in wrong.output
    right = CliRunner().invoke(main, [*more, "--add-views"])
    assert right.exit_code == 0, right.output
    assert len(Cache(cache.path).info.views) == 2
