"""Statistics of a whole cache: which rows count, and that nothing else changes a bit."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.stats import METHODS, FitProgress, Moments, fit_stats, load_moments, load_normalizer
from phistill.stats.fit.pieces import PassOptions, plan_array
from phistill.stats.moments.pass_result import PassResult
from tests.stats.conftest import ARRAYS, TEACHERS, CacheFactory, copy_of, statistics, vectors


@pytest.mark.parametrize("exact", [False, True])
def test_moments_are_those_of_the_accepted_training_rows(cache: Cache, exact: bool) -> None:
    fit_stats(cache, exact=exact)
    for teacher, kind in ARRAYS:
        x = vectors(cache, teacher, kind)
        moments = load_moments(cache, teacher, kind)
        scatter = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
        size = np.sqrt(np.outer(np.diagonal(scatter), np.diagonal(scatter)))
        assert moments.n == len(x)
        tolerance = 1e-12 if exact else 2e-6  # N1
        assert np.max(np.abs(moments.scatter - scatter) / size) < tolerance
        assert np.allclose(moments.mean, x.mean(axis=0), atol=1e-7)


def test_phi_s_is_exact_on_the_rows_it_was_fitted_on(cache: Cache) -> None:
    fit_stats(cache)
    for teacher, kind in ARRAYS:
        x = vectors(cache, teacher, kind).astype(np.float32)
        normalizer = load_normalizer(cache, teacher, kind)
        variance = normalizer.transform(x).astype(np.float64).var(axis=0)
        assert np.max(np.abs(variance - 1)) < 1e-6  # N3


def test_held_out_and_rejected_rows_change_no_bit(make_cache: CacheFactory) -> None:
    rejects = [3, 40, 41, 299]
    plain = make_cache(num_rows=300, teachers=TEACHERS, rejects=rejects)
    heldout = set(plain.rows(split="heldout").tolist()) | set(rejects)

    def poison(_name: str, _kind: str, start: int, values: Any) -> Any:
        for slot in range(len(values)):
            if start + slot in heldout:
                values[slot] = np.nan
        return values

    other = make_cache(
        num_rows=300, teachers=TEACHERS, rejects=rejects, features=poison, name="poisoned.cache"
    )
    fit_stats(plain)
    fit_stats(other)
    for array in ARRAYS:
        one, two = load_moments(plain, *array), load_moments(other, *array)
        assert one.n == two.n
        assert one.scatter.tobytes() == two.scatter.tobytes()
        assert one.mean.tobytes() == two.mean.tobytes()


def test_any_number_of_threads_gives_the_same_bits(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, many = copy_of(cache, "single.cache"), copy_of(cache, "many.cache")
    rows = fit_stats(cache)
    for other, count in ((single, 1), (many, 7)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, count=count: set(range(count)))
        assert fit_stats(other) == rows
        assert statistics(other) == statistics(cache)


def test_every_method_is_fitted_from_the_stored_moments(cache: Cache) -> None:
    fit_stats(cache)
    moments = load_moments(cache, "a", "patches")
    for method in METHODS:
        normalizer = load_normalizer(cache, "a", "patches", method)
        assert normalizer.method == method
        assert normalizer.width == moments.width
        assert normalizer.moments_digest == load_normalizer(cache, "a", "patches").moments_digest
    shrunk = load_normalizer(cache, "a", "patches", "zca", shrinkage=0.2)
    assert shrunk.options["shrinkage"] == 0.2


def test_progress_counts_every_byte_once(cache: Cache) -> None:
    calls: list[FitProgress] = []
    fit_stats(cache, progress=calls.append)
    num_rows = len(cache.rows(["a"]))
    total = num_rows * (64 * 12 * 2 + 6 * 4 + 2 * 12 * 2) + num_rows * 16 * 7 * 2
    assert calls[-1].done_bytes == calls[-1].total_bytes == total
    assert [call.done_bytes for call in calls] == sorted(call.done_bytes for call in calls)
    assert {call.array for call in calls} == {" ".join(array) for array in ARRAYS}


def test_partials_stay_below_one_percent_where_there_is_enough_data(
    make_cache: CacheFactory,
) -> None:
    teacher = TeacherInfo(name="a", grid=(16, 16), widths={"patches": 64})
    cache = make_cache(num_rows=512, teachers=[teacher])
    fit_stats(cache)
    plan = plan_array(cache, "a", "patches", PassOptions())
    triangle = 64 * 65 // 2 * 8
    assert len(plan.groups) > 1
    for group in plan.groups[:-1]:
        stored = group.num_rows * plan.spec.row_bytes
        # a fifth of the rows of a group is held out, so its share grows by as much
        assert triangle < 0.0135 * stored


def test_moments_of_the_cache_are_moments_of_the_array(cache: Cache) -> None:
    """The pass and the plain function agree where a single block holds everything."""
    fit_stats(cache, exact=True)
    x = vectors(cache, "a", "summary")
    plain = Moments.of(x, exact=True)
    moments = load_moments(cache, "a", "summary")
    assert np.allclose(moments.scatter, plain.scatter, rtol=1e-12, atol=1e-12 * len(x))
    assert Path(cache.path / "teachers/a/moments/summary").is_dir()


def test_few_partials_are_in_memory_at_a_time(make_cache: CacheFactory) -> None:
    """Memory grows with the logarithm of the cache: 64 groups, and a dozen results alive."""
    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 2})
    cache = make_cache(num_rows=64 * 64, shard_rows=64, teachers=[teacher], holdout=0.0)
    plan = plan_array(cache, "a", "patches", PassOptions())
    assert len(plan.groups) == 64
    alive = []

    def count(_progress: FitProgress) -> None:
        alive.append(sum(type(thing) is PassResult for thing in gc.get_objects()))

    fit_stats(cache, progress=count)
    assert len(alive) == 64
    # one per level of the tree on both sides of it, and those being computed
    assert max(alive) <= 2 * 6 + len(os.sched_getaffinity(0))
