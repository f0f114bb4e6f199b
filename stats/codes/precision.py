"""What features lose at each precision, before any is stored: a table, and the bits for a loss.

n rows, t tokens, c width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from phistill.cache.codes import bytes_for
from phistill.cache.codes.bands import Band
from phistill.errors import UsageError

from .fit import RowSpectrum

BITS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)

_STEPS_PER_OCTAVE = 8
"""Of the bits that `bits_for_loss` tries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRow:
    """Rows at one precision."""

    name: str
    """float16, bfloat16, or the bits of codes per channel and token."""
    num_bytes: int
    """Of a row."""
    lost_share: float
    """|x - stored|^2 / |x - mean|^2 over the measured rows."""
    cosine: float
    """Mean cosine of a token and what is stored of it, the mean taken off both."""
    limit: float | None = None
    """The share that any code of these bits loses of normal rows of this spectrum, at least
    (`allocation.gaussian_limit`); None for floats."""
    bands: tuple[Band, ...] = ()
    """Of the codes."""
    encode_s: float = 0.0
    """Of a core for a row, measured."""


def precision_table(
    spectrum: RowSpectrum,
    rows: Shaped[np.ndarray, "n ..."],
    *,
    bits: Sequence[float] = BITS,
) -> list[PrecisionRow]:
    """float16, bfloat16 and codes of ``bits``, measured on ``rows`` that the pilot does not hold.

    ``rows`` are as the teacher gave them, best float32: what float16 loses shows only then.
    """
    _check(spectrum, rows)
    lines = [
        _row(spectrum, rows, name, 2 * spectrum.mean_row.size, stored)
        for name, stored in (("float16", _float16(rows)), ("bfloat16", _bfloat16(rows)))
    ]
    for value in bits:
        codec = spectrum.codec(bytes_for(value, spectrum.basis.row_shape))
        begin = time.thread_time()
        codes = codec.encode(rows)
        encode_s = (time.thread_time() - begin) / len(rows)
        line = _row(
            spectrum,
            rows,
            f"{value:g}",
            codec.num_bytes,
            codec.decode(codes),
            limit=spectrum.limit(codec.bits),
            bands=codec.bands,
        )
        lines.append(replace(line, encode_s=encode_s))
    return lines


def bits_for_loss(
    spectrum: RowSpectrum, rows: Shaped[np.ndarray, "n ..."], lost_share: float
) -> float | None:
    """The fewest bits per channel and token whose codes lose at most ``lost_share`` of ``rows``.

    From 0.25 to 8 in steps of an eighth of an octave; None when 8 bits lose more.
    """
    _check(spectrum, rows)
    if not 0 < lost_share < 1:
        raise UsageError(f"lost_share={lost_share} must lie between 0 and 1, as 0.02 does.")
    low, high = -2 * _STEPS_PER_OCTAVE - 1, 3 * _STEPS_PER_OCTAVE
    if _loses(spectrum, rows, high) > lost_share:
        return None
    while high - low > 1:  # what is lost falls with every further byte
        middle = (low + high) // 2
        if _loses(spectrum, rows, middle) <= lost_share:
            high = middle
        else:
            low = middle
    return float(2.0 ** (high / _STEPS_PER_OCTAVE))


def _loses(spectrum: RowSpectrum, rows: Shaped[np.ndarray, "n ..."], step: int) -> float:
    bits = 2.0 ** (step / _STEPS_PER_OCTAVE)
    return spectrum.codec(bytes_for(bits, spectrum.basis.row_shape)).lost_share(rows)


def _check(spectrum: RowSpectrum, rows: Shaped[np.ndarray, "n ..."]) -> None:
    if len(rows) == 0 or rows.shape[1:] != spectrum.basis.row_shape:
        raise UsageError(
            f"Rows of shape {rows.shape}; wanted at least one of {spectrum.basis.row_shape}."
        )


def _row(
    spectrum: RowSpectrum,
    rows: Shaped[np.ndarray, "n ..."],
    name: str,
    num_bytes: int,
    stored: Shaped[np.ndarray, "n ..."],
    *,
    limit: float | None = None,
    bands: tuple[Band, ...] = (),
) -> PrecisionRow:
    mean = spectrum.basis.mean
    x, y = rows.astype(np.float64) - mean, stored.astype(np.float64) - mean
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    products = np.einsum("...c,...c->...", x, y)
    cosine = products[lengths > 0] / lengths[lengths > 0]
    return PrecisionRow(
        name=name,
        num_bytes=num_bytes,
        lost_share=float(np.sum(np.square(x - y)) / np.sum(np.square(x))),
        cosine=float(np.mean(cosine)) if len(cosine) else 1.0,
        limit=limit,
        bands=bands,
    )


def _float16(rows: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    largest = float(np.finfo(np.float16).max)
    return np.clip(rows, -largest, largest).astype(np.float16)


def _bfloat16(rows: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """The upper half of float32, rounded half to even."""
    bits = rows.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return ((rounded >> 16) << 16).astype(np.uint32).view(np.float32)
