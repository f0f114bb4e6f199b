"""How codes spend their bits, as a picture: spectrum, water level, bands, and what is left.

d coefficients of a row, ranked by variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from phistill.cache.codes import bytes_for
from phistill.cache.codes.bands import Band
from phistill.cache.codes.levels import distortion
from phistill.errors import UsageError, counted
from phistill.stats.codes import RowSpectrum
from phistill.stats.codes.allocation import water_level

from .extras import require_libraries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png", ".pdf")
BITS = 2.0
"""Bits per channel and token of the codes that are drawn."""

PANEL = (4.6, 3.4)
"""Inches."""

NUM_POINTS = 150
"""Of a line: a row has up to a million coefficients."""

INK, LEFT, WATER, BAND = "#1b1b1b", "#c2410c", "#2563eb", "#0f766e"


def check_picture(path: Path) -> None:
    """Refuse a file that could not be written, before the work."""
    require_libraries()
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} must end with one of {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}.")


def draw_codes(path: Path, spectra: Mapping[str, RowSpectrum], bits: float = BITS) -> None:
    """A panel for each teacher, at ``bits`` per channel and token, into a file of FORMATS."""
    check_picture(path)
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "codes", "font.size": 9}
    with matplotlib.rc_context(style):
        width, height = PANEL
        figure = Figure(figsize=(width * len(spectra), height), layout="constrained")
        panels = figure.subplots(1, len(spectra), squeeze=False)[0]
        for axes, (name, spectrum) in zip(panels, spectra.items(), strict=True):
            _panel(axes, name, spectrum, bits)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, name: str, spectrum: RowSpectrum, bits: float) -> None:
    codec = spectrum.codec(bytes_for(bits, spectrum.basis.row_shape))
    variances = np.sort(spectrum.variances)[::-1]
    variances = variances / variances.mean()
    at = np.unique(np.geomspace(1, len(variances), NUM_POINTS).astype(int)) - 1
    water = water_level(variances, bits * len(variances))
    left = left_of(variances, codec.bands)
    axes.set_xscale("log")
    axes.set_yscale("log")
    start = 0
    for band in sorted(codec.bands, reverse=True):
        stop = min(start + band.size, len(variances))
        axes.axvspan(max(start, 1), stop, color=BAND, alpha=0.05 + 0.06 * band.bits, linewidth=0)
        axes.text(
            np.sqrt(max(start, 1) * stop), 0.02, str(band.bits), color=INK, ha="center",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        start = stop
    axes.plot(at + 1, variances[at], color=INK, linewidth=1.6, label="variance")
    axes.plot(at + 1, left[at], color=LEFT, linewidth=1.2, label="left by the codes")
    axes.axhline(water, color=WATER, linewidth=1, linestyle="--", label="water level, R(D)")
    low = min(float(variances[at].min()), float(left[at].min()))
    axes.set_ylim(max(low, water * 1e-3) / 8, float(variances[0]) * 2)
    axes.set_xlim(1, len(variances))
    share = 16 / codec.bits
    axes.set_title(f"{name}: {counted(bits, 'bit')}, {share:.3g}x smaller than float16", fontsize=9)
    axes.set_xlabel("coefficient, by variance; below, the bits of its band")
    axes.set_ylabel("variance, mean 1")
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def left_of(variances: Float[np.ndarray, " d"], bands: Sequence[Band]) -> Float[np.ndarray, " d"]:
    """What codes leave of normal coefficients, these largest first: the bands lie in that order."""
    ranked = sorted(bands, reverse=True)
    left = [np.full(band.size, distortion(band.bits)) for band in ranked]
    stored = np.concatenate(left)[: len(variances)]
    return variances * np.concatenate([stored, np.ones(len(variances) - len(stored))])
