"""What each precision loses, and the bits for a loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phistill.cache.codes import bytes_for
from phistill.errors import UsageError
from phistill.stats import Moments
from phistill.stats.codes import RowSpectrum
from phistill.stats.codes.precision import BITS, bits_for_loss, precision_table
from tests.stats.codes.conftest import features

GRID, WIDTH = (4, 5), 24


@pytest.fixture(scope="module")
def spectrum() -> RowSpectrum:
    rows = features(300, GRID, WIDTH, dtype=np.float32)
    return RowSpectrum.of(Moments.of(rows), [rows], grid=GRID)


@pytest.fixture(scope="module")
def held() -> np.ndarray:
    return features(80, GRID, WIDTH, seed=5, dtype=np.float32)


def test_each_precision_loses_what_it_loses(spectrum: RowSpectrum, held: np.ndarray) -> None:
    table = {line.name: line for line in precision_table(spectrum, held)}
    assert list(table) == ["float16", "bfloat16", "8", "4", "2", "1", "0.5", "0.25"]
    mean = spectrum.basis.mean
    total = np.sum(np.square(held - mean), dtype=np.float64)
    stored = {
        "float16": held.astype(np.float16),
        "bfloat16": torch.from_numpy(held).bfloat16().float().numpy(),
    }
    codec = spectrum.codec(bytes_for(2, (20, WIDTH)))
    stored["2"] = codec.decode(codec.encode(held))
    for name, values in stored.items():
        lost = np.sum(np.square(held - values.astype(np.float64))) / total
        assert table[name].lost_share == pytest.approx(lost, rel=1e-6)
    assert table["2"].num_bytes == codec.num_bytes
    shares = [table[f"{bits:g}"].lost_share for bits in BITS]
    assert shares == sorted(shares)
    cosines = [table[f"{bits:g}"].cosine for bits in BITS]
    assert cosines == sorted(cosines, reverse=True)
    assert 1 - 1e-6 < table["float16"].cosine <= 1
    for bits in BITS:
        limit = table[f"{bits:g}"].limit
        assert limit is not None
        assert limit < table[f"{bits:g}"].lost_share


@pytest.mark.parametrize("lost", [0.3, 0.05, 0.01])
def test_the_bits_for_a_loss_are_the_fewest(
    spectrum: RowSpectrum, held: np.ndarray, lost: float
) -> None:
    bits = bits_for_loss(spectrum, held, lost)
    assert bits is not None
    assert spectrum.codec(bytes_for(bits, (20, WIDTH))).lost_share(held) <= lost
    fewer = bytes_for(bits * 2 ** (-1 / 8), (20, WIDTH))
    assert spectrum.codec(fewer).lost_share(held) > lost


def test_what_cannot_be_had_is_said(spectrum: RowSpectrum, held: np.ndarray) -> None:
    assert bits_for_loss(spectrum, held, 1e-6) is None
    with pytest.raises(UsageError, match="between 0 and 1"):
        bits_for_loss(spectrum, held, 2.0)
    with pytest.raises(UsageError, match="at least one"):
        precision_table(spectrum, held[:0])
