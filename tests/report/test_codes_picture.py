"""What the picture of a codec shows is what the codec does."""

from __future__ import annotations

import numpy as np
import pytest

from phistill.report.codes_picture import left_of
from phistill.stats import Moments
from phistill.stats.codes import RowSpectrum


def test_what_is_drawn_as_left_is_what_codes_leave_of_normal_rows() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(600, 16, 32)) * np.arange(1, 33) ** -0.7
    spectrum = RowSpectrum.of(Moments.of(rows), [rows], grid=(4, 4))
    codec = spectrum.codec(128)
    variances = np.sort(spectrum.variances)[::-1]
    drawn = left_of(variances, codec.bands).sum() / variances.sum()
    fresh = random.normal(size=(600, 16, 32)) * np.arange(1, 33) ** -0.7
    assert drawn == pytest.approx(codec.lost_share(fresh), rel=0.05)
