"""Some rows, some tokens: chosen by seed, and fairly."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.pipeline.decode.shards import num_cores
from phistill.stats import FitProgress, fit_stats, load_description, load_moments, load_options
from phistill.stats.fit import partials
from phistill.stats.fit.pieces import PassOptions, plan_array
from tests.stats.conftest import ARRAYS, CacheFactory, statistics


def test_subsamples_are_seeded_nested_and_recorded(cache: Cache) -> None:
    rows = {}
    for count in (20, 50):
        plan = plan_array(cache, "a", "patches", PassOptions(max_images=count, seed=4))
        rows[count] = {int(r) for g in plan.groups for p in g.pieces for r in p.rows}
        assert len(rows[count]) == count
    assert rows[20] < rows[50] < set(cache.rows(["a"]).tolist())
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=4)
    row = load_description(cache, "a", "patches")
    assert (row.num_rows, row.num_vectors) == (50, 250)
    assert load_description(cache, "a", "summary").num_vectors == 50
    one = load_moments(cache, "a", "patches")
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=5)
    two = load_moments(cache, "a", "patches")
    assert not np.array_equal(one.mean, two.mean)
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=4)
    assert load_moments(cache, "a", "patches").scatter.tobytes() == one.scatter.tobytes()


def test_a_sample_of_all_tokens_and_rows_is_the_whole(cache: Cache) -> None:
    fit_stats(cache)
    whole = {array: load_moments(cache, *array).scatter.tobytes() for array in ARRAYS}
    fit_stats(cache, max_images=10**6, tokens_per_image=64)
    for array in ARRAYS:
        assert load_moments(cache, *array).scatter.tobytes() == whole[array]


def test_sampled_tokens_are_a_fair_choice(make_cache: CacheFactory) -> None:
    """Features equal to the token's number: the mean of a fair sample is near the middle."""

    def numbered(_name: str, _kind: str, _start: int, values: Any) -> Any:
        return np.broadcast_to(np.arange(64)[None, :, None], values.shape).astype(np.float16)

    teacher = TeacherInfo(name="a", grid=(8, 8), widths={"patches": 4})
    cache = make_cache(num_rows=400, teachers=[teacher], features=numbered, holdout=0.0)
    fit_stats(cache, tokens_per_image=4)
    mean = load_moments(cache, "a", "patches").mean[0]
    # 1,600 draws from 0 .. 63 (std 18.5) have a standard error of 0.46; four of them
    assert abs(mean - 31.5) < 1.85


def test_one_token_of_each_image_does_not_bring_all_images_into_memory(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = TeacherInfo(name="a", grid=(16, 16), widths={"patches": 64})  # 32 KiB a row
    cache = make_cache(num_rows=400, teachers=[teacher], holdout=0.0)
    monkeypatch.setattr(partials, "READ_BYTES", 2**20)
    tracemalloc.start()
    try:
        fit_stats(cache, tokens_per_image=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert load_description(cache, "a", "patches").num_vectors == 400
    # 12.5 MiB of features; a block of 1 MiB for each thread, and what a fit of width 64 takes
    assert peak < 1.5 * 2**20 * (num_cores() + 1)


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"max_images": 300}, {"tokens_per_image": 64, "seed": 2}],
    ids=["seed", "all images", "all tokens"],
)
def test_options_that_leave_nothing_out_compute_nothing_again(
    cache: Cache, options: dict[str, Any]
) -> None:
    rows = fit_stats(cache)
    before = statistics(cache)
    calls: list[FitProgress] = []
    assert fit_stats(cache, progress=calls.append, **options) == rows
    assert not calls
    assert statistics(cache) == before
    assert load_options(cache, "a", "patches") == PassOptions()


def test_an_option_counts_only_for_the_arrays_that_it_changes(cache: Cache) -> None:
    """A summary is one token, and no sample of tokens changes it."""
    fit_stats(cache, seed=1)
    calls: list[FitProgress] = []
    fit_stats(cache, tokens_per_image=16, seed=7, progress=calls.append)
    assert {call.array for call in calls} == {"a patches"}


def test_shards_that_a_sample_takes_whole_are_not_summed_again(cache: Cache) -> None:
    """Which rows are taken says the piece's mask; that they were chosen, or by which seed, does not
    change their sum."""
    num_rows = len(cache.rows(["a"]))
    whole = plan_array(cache, "a", "patches", PassOptions())
    almost = plan_array(cache, "a", "patches", PassOptions(max_images=num_rows - 1, seed=3))
    pairs = [
        (one, two)
        for left, right in zip(whole.groups, almost.groups, strict=True)
        for one, two in zip(left.pieces, right.pieces, strict=True)
    ]
    assert sum(one.key != two.key for one, two in pairs) == 1
    assert all((one.key == two.key) == (len(one.rows) == len(two.rows)) for one, two in pairs)
