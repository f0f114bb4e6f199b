"""Channel variances on held-out images, and the range to expect for so many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.cache.errors import DegenerateMoments
from phistill.stats import fit_stats, fitted
from phistill.stats.heldout import heldout_variances

CacheFactory = Callable[..., Cache]
TEACHER = TeacherInfo(name="a", grid=(4, 4), widths={"patches": 24, "summary": 10})


def alike_tokens(_name: str, kind: str, _start: int, values: Any) -> Any:
    """Tokens of an image share most of their value, as real ones do."""
    return values + 2 * values[:, :1] if kind == "patches" else values


def test_variances_are_those_of_the_normalised_heldout_rows(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=500, teachers=[TEACHER], features=alike_tokens, shard_rows=64)
    fit_stats(cache)
    for kind in ("patches", "summary"):
        x = cache.reader("a", kind).read(cache.rows(["a"], split="heldout"))
        for row in heldout_variances(cache, "a", kind):
            y = fitted(cache, "a", kind, row.method).transform(x).reshape(-1, x.shape[-1])
            variance = y.astype(np.float64).var(axis=0)
            assert row.num_rows == len(x)
            assert row.variance_min == pytest.approx(variance.min(), rel=1e-6)
            assert row.variance_mean == pytest.approx(variance.mean(), rel=1e-6)
            assert row.variance_max == pytest.approx(variance.max(), rel=1e-6)


def test_images_of_the_same_kind_stay_in_the_expected_range(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=1500, teachers=[TEACHER], features=alike_tokens, shard_rows=128)
    fit_stats(cache)
    for row in heldout_variances(cache, "a", "patches"):
        assert row.expected_min < row.variance_min
        assert row.variance_max < row.expected_max
        # 300 images whose tokens are nearly one: about 300 independent draws of y^2 (std 1.4),
        # and 3.1 standard errors for 24 channels at once; tokens as draws would give a fourth
        assert row.expected_max - 1 == pytest.approx(3.1 * 1.25 / np.sqrt(300), rel=0.2)


def test_other_images_leave_the_expected_range(make_cache: CacheFactory) -> None:
    plain = make_cache(num_rows=600, teachers=[TEACHER], name="plain.cache", shard_rows=64)
    heldout = set(plain.rows(["a"], split="heldout").tolist())

    def louder(_name: str, _kind: str, start: int, values: Any) -> Any:
        for slot in range(len(values)):
            if start + slot in heldout:
                values[slot] *= 2
        return values

    cache = make_cache(num_rows=600, teachers=[TEACHER], features=louder, shard_rows=64)
    fit_stats(cache)
    (row,) = heldout_variances(cache, "a", "patches", ["phi-s"])
    assert row.variance_mean > row.expected_max


def test_without_heldout_rows_it_says_so(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=40, teachers=[TEACHER], holdout=0.0)
    fit_stats(cache)
    with pytest.raises(DegenerateMoments, match="0 rows are held out"):
        heldout_variances(cache, "a", "patches")
