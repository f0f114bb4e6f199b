"""What is said of a cache without reading a feature."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from phistill.cache import Cache
from phistill.report.inspection import describe, rejected_rows, render
from phistill.stats import fit_stats


def test_a_finished_cache_is_described_as_json(cache: Cache) -> None:
    found = describe(cache.path)
    assert json.loads(json.dumps(found)) == found
    assert found["complete"]
    assert found["rows"] == found["images"] == 64
    assert sum(found["splits"].values()) == 64
    assert found["owners"]["quiet"]["committed"] == found["owners"]["quiet"]["shards"] == 4
    assert found["owners"]["loud"]["arrays"] == {"patches": [9, 12], "summary": [6]}
    assert found["bytes"] == sum(owner["bytes"] for owner in found["owners"].values())
    assert found["teachers"]["loud"]["fingerprint"] == cache.teacher("loud").fingerprint
    assert found["settings"]["shard_rows"] == 16
    assert " in 4 shards, format 1\n" in render(found), "which every owner has"
    states = [s["state"] for t in found["teachers"].values() for s in t["statistics"].values()]
    assert states == ["ready"] * 3


def test_bytes_are_those_on_the_disk(cache: Cache) -> None:
    files = [path for path in cache.path.glob("teachers/quiet/patches/c/**/*") if path.is_file()]
    assert files
    assert describe(cache)["owners"]["quiet"]["bytes"] == sum(f.stat().st_size for f in files)


def test_a_row_that_every_owner_rejects_is_one_row(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache(rejects=(3, 17))
    found = describe(cache)
    assert found["rejects"] == {"rows": 2, "reasons": {"invented": 2}}
    assert found["owners"]["pixels"]["rejected"] == 2
    assert sum(found["splits"].values()) == 48
    first = rejected_rows(cache)[0]
    assert (first.row, first.id, first.owners) == (3, "image-00003", ("pixels", "a", "b"))
    assert "2 x invented" in render(found)


def test_statistics_say_what_they_were_taken_with(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache()
    fit_stats(cache, tokens_per_image=2, max_images=20)
    found = describe(cache)["teachers"]["a"]["statistics"]
    assert found["patches"]["options"] == {"tokens_per_image": 2, "max_images": 20}
    assert found["summary"]["options"] == {"max_images": 20}, "a summary is one token"
    assert ", tokens_per_image 2, max_images 20\n" in render(describe(cache))


def test_missing_and_stale_statistics_and_shards_are_said(
    make_cache: Callable[..., Cache],
) -> None:
    cache = make_cache()

    def states() -> list[str]:
        description: dict[str, Any] = describe(cache.path)
        statistics = description["teachers"]["a"]["statistics"]
        return [entry["state"] for entry in statistics.values()]

    assert states() == ["missing", "missing"]
    fit_stats(cache, teachers=["a"])
    assert states() == ["ready", "ready"]
    sorted((cache.path / "commits" / "a").glob("*.json"))[1].unlink()
    assert states() == ["stale", "stale"]
    found = describe(cache.path)
    assert not found["complete"]
    assert found["owners"]["a"]["committed"] == found["owners"]["a"]["shards"] - 1
    assert "unfinished" in render(found)
    assert "phistill extract" in render(found)
