"""The verb compact: the copy keeps the statistics that are still true, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.remove import remove_images
from phistill.cli import main
from phistill.stats import fit_stats, load_moments
from phistill.stats.fit.reuse import reuse_statistics

CacheFactory = Callable[..., Cache]


def partials(cache: Cache) -> dict[str, bytes]:
    found = (cache.path / "teachers").rglob("part-*.safetensors")
    return {path.relative_to(cache.path).as_posix(): path.read_bytes() for path in found}


def test_shards_that_lost_nothing_are_not_read_for_statistics_again(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=800, shard_rows=8)
    fit_stats(cache)
    remove_images(cache, ["image-00701"])
    report = compact(cache, str(tmp_path / "out"), reuse=reuse_statistics, drop_removed=True)
    carried = partials(report.cache)
    assert report.num_statistics == len(carried) > 0
    assert all(data == partials(cache)[path] for path, data in carried.items())
    fit_stats(report.cache)
    after = partials(report.cache)
    touched = {path for path in after if after[path] != carried.get(path)}
    assert len(touched) < len(after), "most partials were taken over"
    again = compact(cache, str(tmp_path / "fresh"), reuse=reuse_statistics, drop_removed=True).cache
    for path in (again.path / "teachers").rglob("part-*.safetensors"):
        path.unlink()
    fit_stats(again)
    for kind in ("patches", "summary"):
        one, two = (load_moments(c, "a", kind) for c in (report.cache, again))
        assert one.n == two.n
        assert np.array_equal(one.scatter, two.scatter), "bit-equal to statistics from nothing"


def test_no_partial_that_saw_a_removed_image_is_taken_over(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(num_rows=60)  # one group of shards: every partial saw every image
    fit_stats(cache)
    remove_images(cache, ["image-00001"])
    assert (
        compact(
            cache, str(tmp_path / "out"), reuse=reuse_statistics, drop_removed=True
        ).num_statistics
        == 0
    )


def test_the_commands_take_down_name_duplicates_and_compact(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache, out = str(make_cache(num_rows=60).path), str(tmp_path / "out")
    (tmp_path / "ids.txt").write_text("image-00004\nimage-00005\n")

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(args))
        return result.exit_code, result.output

    assert run("remove-images", cache)[0] == 2
    assert run("compact", cache, out)[0] == 2
    code, text = run("remove-images", cache, "image-00003", "--file", str(tmp_path / "ids.txt"))
    assert (code, "3 rows removed" in text) == (0, True)
    code, text = run("compact", cache, out, "--drop-removed")
    assert code == 0, text
    assert "written" in text
    assert "shard" not in text, "which every owner has as many of"
    assert store.open(out).rows(split="all").size == 57
    code, text = run("compact", cache, out, "--drop-removed")
    assert (code, "nothing to do" in text) == (0, True)
    assert run("verify", out)[0] == 0
