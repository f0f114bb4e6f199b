"""Some rows, some tokens: chosen by seed, and fairly."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.pipeline.decode.shards import num_cores
from phistill.stats import fit_stats, load_moments, load_row
from phistill.stats.fit import partials
from phistill.stats.fit.pieces import PassOptions, plan_array
from tests.stats.conftest import ARRAYS, CacheFactory


def test_subsamples_are_seeded_nested_and_recorded(cache: Cache) -> None:
    rows = {}
    for count in (20, 50):
        plan = plan_array(cache, "a", "patches", PassOptions(max_images=count, seed=4))
        rows[count] = {int(r) for g in plan.groups for p in g.pieces for r in p.rows}
        assert len(rows[count]) == count
    assert rows[20] < rows[50] < set(cache.rows(["a"]).tolist())
    fit_stats(cache, max_images=50, tokens_per_image=5, seed=4)
    row = load_row(cache, "a", "patches")
    assert (row.num_rows, row.num_vectors) == (50, 250)
    assert load_row(cache, "a", "summary").num_vectors == 50
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
    assert load_row(cache, "a", "patches").num_vectors == 400
    # 12.5 MiB of features; a block of 1 MiB for each thread, and what a fit of width 64 takes
    assert peak < 1.5 * 2**20 * (num_cores() + 1)
