"""Channels that float16 holds badly are named: at fit-stats, import and extraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from phistill.cache import Cache
from phistill.cli import main
from phistill.stats import fit_stats
from phistill.stats.coarse import coarse_arrays, coarse_channels
from tests.pipeline.exchange.feature_folders import normal, write

CacheFactory = Callable[..., Cache]
FLOAT16 = np.dtype(np.float16)


@given(st.floats(2**-13, 60_000))
def test_the_step_is_that_of_the_formula(mean: float) -> None:
    stored = float(np.float16(mean))
    found = coarse_channels(np.array([stored]), np.array([0.0]), FLOAT16)
    assert found is not None
    assert found.step == 2.0 ** (np.floor(np.log2(stored)) - 10)


def test_a_tenth_of_a_standard_deviation_is_the_limit() -> None:
    """Around 100 float16 steps by 1/16: a std of 0.7 is more than ten steps, 0.6 is less."""
    mean, std = np.array([100.0, 100.0, -100.0, 0.0]), np.array([0.7, 0.6, 0.5, 0.0])
    found = coarse_channels(mean, std, FLOAT16)
    assert found is not None
    assert (found.num, found.worst, found.step) == (2, 2, 1 / 16)
    assert coarse_channels(mean[[0, 3]], std[[0, 3]], FLOAT16) is None
    assert coarse_channels(mean, std, np.dtype(np.float32)) is None


def test_values_stored_so_have_indeed_lost_what_tells_them_apart() -> None:
    """The hard case: float32 features whose rounding changes half a channel's variance."""
    values = 1000 + 0.15 * np.random.default_rng(0).standard_normal(100_000)
    rounded = values.astype(np.float16).astype(np.float64)
    assert np.var(rounded - values) > 0.5 * np.var(values)
    assert coarse_channels(np.array([rounded.mean()]), np.array([rounded.std()]), FLOAT16)


@pytest.fixture
def offset() -> np.ndarray:
    """(40, 4, 5) with one channel of mean 1,000 and std 1."""
    values = normal(40, 4, 5)
    values[..., 3] += 1000
    return values


def test_import_and_fit_stats_warn_of_the_same_channel(offset: np.ndarray, tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=offset, t__summary=offset[:, 0])
    cache = str(tmp_path / "c")
    arguments = ["import-features", str(folder), "--cache", cache, "--source", "s"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    told = [line for line in done.output.splitlines() if "coarsely" in line]
    assert len(told) == 1, "a summary is stored as float32"
    assert told[0].startswith("t patches: warning: 1 of 5 channels are held coarsely by float16")
    assert "channel 3: mean 1e+03" in told[0]
    fitted = CliRunner().invoke(main, ["fit-stats", cache])
    assert "t patches: warning: 1 of 5 channels" in fitted.output
    assert "coarsely" not in CliRunner().invoke(main, arguments).output, "nothing was imported"


def test_features_without_a_large_mean_raise_no_warning(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=64)
    assert coarse_arrays(cache, cache.teachers) == ()
    assert all(row.coarse is None for row in fit_stats(cache))
