"""What a teacher's patches lose at each precision, measured before anything is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from phistill.display import table_text
from phistill.errors import UsageError, counted
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.stats import Moments
from phistill.stats.codes import RowSpectrum
from phistill.stats.codes.precision import PrecisionRow, bits_for_loss, precision_table

from .terminal import bytes_text, duration_text

MIN_IMAGES = 10
MEASURED_SHARE = 5
"""One image in so many is measured, the others are fitted on."""

LOSS = 0.02
"""The lost share that `plan` names the bits for."""


class Precision(NamedTuple):
    """What was measured of one teacher's patches."""

    rows: tuple[PrecisionRow, ...]
    bits_for_loss: float | None
    """That lose LOSS at most; None where none do."""
    spectrum: RowSpectrum
    """Of the images that were fitted on."""


def measure_precision(
    runner: TeacherRunner, pixels: np.ndarray[Any, np.dtype[np.uint8]]
) -> Precision:
    """Of patches in float32: each precision, and the bits that lose LOSS at most, if any do.

    A codec is fitted on four fifths of the images and measured on the rest. Raises UsageError for
    fewer than MIN_IMAGES, and DegenerateMoments where the patches do not vary.
    """
    if len(pixels) < MIN_IMAGES:
        raise UsageError(
            f"{counted(len(pixels), 'usable image')} for the precision; {MIN_IMAGES} are needed."
        )
    size = runner.info.rows_per_forward
    patches = np.concatenate(
        [
            runner.forward(pixels[start : start + size]).patches.flatten(1, 2).float().cpu().numpy()
            for start in range(0, len(pixels), size)
        ]
    )
    measured = np.arange(len(patches)) % MEASURED_SHARE == 0
    pilot, rows = patches[~measured], patches[measured]
    spectrum = RowSpectrum.of(Moments.of(pilot), [pilot], grid=runner.info.grid)
    return Precision(
        tuple(precision_table(spectrum, rows)), bits_for_loss(spectrum, rows, LOSS), spectrum
    )


def precision_text(
    name: str,
    rows: Sequence[PrecisionRow],
    bits: float | None,
    *,
    num_rows: int,
    seconds_per_row: float,
) -> str:
    """A table for one teacher: what a row and all ``num_rows`` take and lose, and how long the
    teacher, ``seconds_per_row``, and the coding of its patches take."""
    lines = [
        (
            *(row.name, bytes_text(row.num_bytes), bytes_text(row.num_bytes * num_rows)),
            duration_text((seconds_per_row + row.encode_s) * num_rows),
            f"{row.lost_share:.3%}",
            *(_decibel(row.lost_share), f"{row.cosine:.4f}"),
            "" if row.limit is None else _decibel(row.limit),
        )
        for row in rows
    ]
    header = (f"{name} patches", "per row", "in all", "time", "lost", "dB", "cosine", "limit dB")
    told = counted(bits, "bit") if bits is not None else "more than 8 bits"
    return f"{table_text(header, lines)}\n{LOSS:.0%} lost at most: {told}."


def _decibel(share: float) -> str:
    return f"{-10 * math.log10(share):.1f}" if share > 0 else "inf"
