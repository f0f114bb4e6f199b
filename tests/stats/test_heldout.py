"""Channel variances on held-out images, and the range to expect for so many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.errors import DegenerateMoments
from phistill.stats import fit_stats, load_normalizer
from phistill.stats.heldout import expected_range, heldout_variances

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
            y = load_normalizer(cache, "a", kind, row.method).transform(x).reshape(-1, x.shape[-1])
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
        # and 3.1 standard errors for 24 channels at once, 12 % more for 1,200 training images and
        # 7 % for the longer upper tail; tokens as draws would give a fourth
        assert row.expected_max - 1 == pytest.approx(3.7 * 1.25 / np.sqrt(300), rel=0.2)


@pytest.mark.parametrize("scale_spread", [0.0, 0.25])
def test_the_expected_range_holds_as_often_as_it_says(scale_spread: float) -> None:
    """Gaussian summaries of common or differing size; equal tails, and the naive one is too low.

    400 draws of 40 channels: 5 % leave the range, 3.3 to 6.7 % within three standard errors and
    twice that because s and g are themselves estimated.
    """
    rng = np.random.default_rng(0)
    num_heldout, num_training, width = 300, 1500, 40
    outside = naive = 0
    for _ in range(400):
        rows = num_training + num_heldout
        x = rng.normal(size=(rows, width)) * np.exp(scale_spread * rng.normal(size=(rows, 1)))
        train, test = x[:num_training], x[num_training:]
        q = np.square((test - train.mean(axis=0)) / train.std(axis=0))
        centred = q - q.mean(axis=0)
        spread = float(np.mean(np.square(centred)))
        skewness = float(np.mean(centred**3)) / spread**1.5
        variance = q.mean(axis=0)
        low, high = expected_range(spread, skewness, width, num_heldout, num_training)
        outside += bool(variance.min() < low or variance.max() > high)
        _, high = expected_range(spread, 0.0, width, num_heldout, 10**9)
        naive += bool(variance.max() > high)
    assert outside < 0.09 * 400
    assert naive > 0.09 * 400


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
