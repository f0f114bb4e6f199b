"""Products through torch: the same moments within the same figure, on any device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from phistill.cache import Cache
from phistill.errors import UsageError
from phistill.stats import fit_stats, load_moments
from phistill.stats.moments.blocks import Pilot
from phistill.stats.moments.moments import Accumulator
from phistill.stats.moments.statistics_device import torch_sums

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu:0", pytest.param("cuda", marks=NO_CUDA)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("exact", [False, True])
def test_torch_products_are_those_of_numpy(
    device: str, dtype: type[np.floating], exact: bool
) -> None:
    x = (np.random.default_rng(0).normal(size=(3000, 20)) * np.arange(1, 21) + 40).astype(dtype)
    plain = Accumulator(20, exact=exact)
    other = Accumulator(20, exact=exact, take=torch_sums(device))
    for accumulator in (plain, other):
        accumulator.add(x[:2000])
        accumulator.add(x[2000:])
    one, two = plain.moments(), other.moments()
    size = np.sqrt(np.outer(np.diagonal(one.scatter), np.diagonal(one.scatter)))
    tolerance = 1e-12 if one.eps < 1e-12 else 2e-6  # N1
    assert one.eps == two.eps
    assert np.max(np.abs(one.scatter - two.scatter) / size) < tolerance
    assert np.array_equal(plain.energies.counts.sum(), other.energies.counts.sum())


@pytest.mark.parametrize("device", DEVICES)
def test_products_are_full_float32_whatever_precision_was_asked_for(device: str) -> None:
    """TF32 on a GPU and bfloat16 on some CPUs keep 10 and 7 bits: 1e-4 and worse of an entry."""
    x = np.random.default_rng(0).normal(size=(4096, 256)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    take = torch_sums(device)
    try:
        torch.set_float32_matmul_precision("medium")
        sums = take(x, pilot := Pilot.of(x).mean, np.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    centred = x.astype(np.float64) - pilot
    products = centred.T @ centred
    size = np.sqrt(np.outer(np.diagonal(products), np.diagonal(products)))
    assert np.max(np.abs(sums.products - products) / size) < 2e-6  # N1
    assert np.allclose(sums.offset, centred.mean(axis=0), rtol=0, atol=6e-8)  # float32


@pytest.mark.parametrize("device", DEVICES)
def test_fit_stats_takes_a_device(make_cache: Callable[..., Cache], device: str) -> None:
    cache = make_cache(num_rows=80)
    fit_stats(cache)
    plain = load_moments(cache, "a", "patches")
    fit_stats(cache, device=device)
    other = load_moments(cache, "a", "patches")
    assert np.allclose(plain.scatter, other.scatter, rtol=1e-5, atol=1e-5 * plain.scatter.max())


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("nonsense", "meta"):  # the second one computes, and holds no values
        with pytest.raises(UsageError, match=f"device='{device}'"):
            torch_sums(device)
