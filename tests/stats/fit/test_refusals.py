"""What fit_stats refuses, and what it says."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache
from phistill.errors import DegenerateMoments, IncompleteCache, MissingMoments, UsageError
from phistill.stats import fit_stats, load_moments, load_normalizer
from tests.stats.conftest import TEACHERS, CacheFactory, statistics


def test_statistics_that_were_never_taken_name_the_command(cache: Cache) -> None:
    with pytest.raises(MissingMoments, match=f"phistill fit-stats {cache.path}"):
        load_normalizer(cache, "a", "patches")
    with pytest.raises(UsageError, match="it has: a, b"):
        load_moments(cache, "c", "patches")
    with pytest.raises(UsageError, match="has no summary"):
        load_moments(cache, "b", "summary")
    with pytest.raises(UsageError, match="it has: a, b"):
        fit_stats(cache, teachers=["c"])


def test_an_unfinished_cache_is_refused_with_the_command_that_finishes_it(cache: Cache) -> None:
    (cache.path / "commits/b/000004.json").unlink()
    unfinished = store.open(cache.path)
    with pytest.raises(IncompleteCache, match=r"b has 18 of 19 shards.*phistill extract"):
        fit_stats(unfinished)
    assert [row.teacher for row in fit_stats(unfinished, teachers=["a"])] == ["a"] * 3


def test_a_scheduler_that_is_no_address_is_refused_at_once(cache: Cache) -> None:
    with pytest.raises(UsageError, match="neither an address such as tcp://host:8786 nor"):
        fit_stats(cache, scheduler="foo")


def test_nan_names_teacher_shard_and_row(make_cache: CacheFactory) -> None:
    def poison(name: str, kind: str, start: int, values: Any) -> Any:
        if (name, kind) == ("a", "registers") and start == 64:
            values[5, 1, 3] = np.nan
        return values

    cache = make_cache(num_rows=300, teachers=TEACHERS, features=poison, holdout=0.0)
    before = set(threading.enumerate())
    with pytest.raises(DegenerateMoments, match=r"teacher a, registers: row 69 \(shard 4\).*NaN"):
        fit_stats(cache)
    # A task that outlives the run would write after the lock is free, over another run's files.
    assert set(threading.enumerate()) <= before
    assert fit_stats(cache, teachers=["b"])[0].teacher == "b"


def test_a_constant_teacher_is_an_error_that_names_it(make_cache: CacheFactory) -> None:
    def constant(name: str, _kind: str, _start: int, values: Any) -> Any:
        return np.full_like(values, 0.3) if name == "b" else values

    cache = make_cache(num_rows=100, teachers=TEACHERS, features=constant)
    with pytest.raises(
        DegenerateMoments, match=r"teacher b, patches, shards 0 to 6: All .* are the same"
    ):
        fit_stats(cache)


def test_statistics_of_a_refused_call_are_not_stored_in_part(
    make_cache: CacheFactory,
) -> None:
    """Arrays side by side must not have been taken with different options."""

    def constant(name: str, _kind: str, _start: int, values: Any) -> Any:
        return np.full_like(values, 0.3) if name == "b" else values

    cache = make_cache(num_rows=100, teachers=TEACHERS, features=constant)
    fit_stats(cache, teachers=["a"])
    before = published(cache)
    with pytest.raises(DegenerateMoments, match="are the same"):
        fit_stats(cache, tokens_per_image=2)
    assert published(cache) == before


def published(cache: Cache) -> dict[str, bytes]:
    """The statistics that count, without the partials they were put together from."""
    return {path: data for path, data in statistics(cache).items() if "/part-" not in path}


def test_a_single_summary_is_too_few(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=10, teachers=TEACHERS[:1], rejects=range(1, 10), holdout=0.0)
    with pytest.raises(DegenerateMoments, match="teacher a, summary, shards 0 to 0: n=1 vectors"):
        fit_stats(cache)


def test_a_cache_without_training_rows_is_an_error_that_says_so(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20, teachers=TEACHERS[1:], rejects=range(20))
    with pytest.raises(DegenerateMoments, match="teacher b, patches: no row is left"):
        fit_stats(cache)


def test_wrong_options_are_refused_before_any_work(cache: Cache) -> None:
    for options, message in (
        ({"max_images": 0}, "max_images=0"),
        ({"tokens_per_image": -1}, "tokens_per_image=-1"),
        ({"scheduler": "here"}, "scheduler='here' is neither an address"),
    ):
        with pytest.raises(UsageError, match=message):
            fit_stats(cache, **options)
    assert not statistics(cache)
