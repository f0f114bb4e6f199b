"""A copy of a cache whose patches are codes: codecs are fitted, rows coded, statistics taken along.

The moments are those of the float features, and stay so: PHI-S and every other normalizer of the
copy have the bits that they have in the cache it was made from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.codes import FittedCodec, bytes_for
from phistill.cache.format import names
from phistill.cache.upkeep.compact import compact
from phistill.cache.upkeep.copying import CopyProgress, CopyReport
from phistill.compute.blas import one_blas_thread
from phistill.errors import UsageError, counted, percent

from .codes.fit import RowSpectrum
from .codes.precision import bits_for_loss
from .fit.loading import load_moments, stored_options
from .fit.reuse import reuse_statistics
from .moments.moments import Moments

KIND = "patches"
"""What is coded: patches are 97 % and more of a teacher's bytes. Summaries and registers stay as
they are."""

PILOT_ROWS = 2500
"""Training rows at most that a codec is fitted to and measured on."""

MEASURED_SHARE = 5
"""One pilot row in so many is measured, the others are fitted on."""

MIN_MEASURED = 10
"""Fewer pilot rows are all fitted on and measured."""

READ_BYTES = 2**26
"""Of pilot rows at once."""

MIN_PILOT = 20
"""Training rows below which an extraction knows nothing of those to come."""

MIN_BITS, MAX_BITS = 0.25, 8.0

SUSPICIOUS = 2.0
"""A shard whose codes lose so many times what the pilot's lose is not like the pilot."""

Bits = float | Mapping[str, float]
"""Bits per channel and token: of every teacher, or by teacher."""

Budget = Callable[[RowSpectrum, Callable[[], NDArray[Any]]], int]
"""Bytes of a row, by the pilot's spectrum and the pilot rows that are not in it, where asked for.
"""


def compact_cache(
    cache: Cache | Path | str,
    out: str | Path,
    *,
    bits: Bits | None = None,
    drop_removed: bool = False,
    workers: int = 4,
    progress: CopyProgress | None = None,
) -> CopyReport:
    """Write a smaller copy of ``cache`` to ``out``: patches in ``bits``, without removed rows.

    Errors as ``cache.upkeep.compact``, and UsageError for bits outside 0.25 to 8, MissingMoments
    and StaleMoments where fit_stats must run first. Warns of shards that lose much more than the
    pilot.
    """
    source = cache if isinstance(cache, Cache) else store.open(cache)
    codecs = {
        name: {KIND: partial(fit_stored, source, name, KIND, value)}
        for name, value in teacher_bits(source, bits).items()
    }
    report = compact(
        source,
        out,
        drop_removed=drop_removed,
        codecs=codecs,
        workers=workers,
        progress=progress,
        reuse=reuse_statistics,
    )
    for text in unlike_pilot(report.cache):
        warnings.warn(text, stacklevel=2)
    return report


def teacher_bits(cache: Cache, bits: Bits | None) -> dict[str, float]:
    """By teacher of the cache, the bits that are asked for."""
    if bits is None:
        return {}
    named = dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(cache.teachers, bits)
    for name, value in named.items():
        cache.teacher(name)  # UsageError lists the known ones
        check_bits(name, value)
    return named


def check_bits(teacher: str, bits: float) -> None:
    """UsageError for bits that no codec has."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise UsageError(
            f"bits={bits:g} of {teacher} must lie between {MIN_BITS} and {MAX_BITS:g} per channel."
        )


def fit_stored(cache: Cache, teacher: str, kind: str, bits: float) -> FittedCodec:
    """A codec of stored features: from their exact moments and a pilot of training rows.

    The same cache gives the same codec. Errors as load_moments and RowSpectrum.of.
    """
    info = cache.teacher(teacher)
    moments = load_moments(cache, teacher, kind)
    options = stored_options(cache, teacher, kind)
    assert options is not None, "they go with moments"
    if options.max_images is not None or options.tokens_per_image is not None:
        raise UsageError(
            f"The statistics of {teacher} in {cache.location} are of a sample. A copy of codes "
            "keeps the sums of all features, which cannot be taken afterwards: first phistill "
            f"fit-stats {cache.location}"
        )
    rows = cache.rows([teacher], "train")[:PILOT_ROWS]  # rows are in random order
    reader = cache.reader(teacher, kind)
    return fit_pilot(
        moments,
        lambda some: reader.read(rows[some]),
        len(rows),
        grid=info.grid if kind == KIND else None,
        budget=bits_budget(bits),
        block=max(1, READ_BYTES // reader.row_bytes),
    )


def fit_pilot(
    moments: Moments,
    read: Callable[[Int[np.ndarray, " b"]], NDArray[Any]],
    num_rows: int,
    *,
    grid: tuple[int, int] | None,
    budget: Budget,
    block: int,
) -> FittedCodec:
    """Fit a codec on four fifths of ``num_rows`` pilot rows and measure it on the rest.

    ``read`` gives the rows of some positions, ``block`` at a time unless a budget wants those that
    are measured at once. ``moments`` may be of all rows. Errors as RowSpectrum.of, and UsageError
    for a budget that cannot be kept.
    """
    every = np.arange(num_rows)
    measured = every % MEASURED_SHARE == 0 if num_rows >= MIN_MEASURED else np.ones(num_rows, bool)
    fitted = ~measured if num_rows >= MIN_MEASURED else measured

    def blocks(some: Sequence[int]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(some), block):
            yield read(np.asarray(some[start : start + block]))

    with one_blas_thread():  # or the last bits depend on the number of cores
        spectrum = RowSpectrum.of(moments, blocks(every[fitted].tolist()), grid=grid)
        num_bytes = budget(spectrum, lambda: read(every[measured]))
        codec = spectrum.codec(num_bytes)
        lost = total = 0.0
        for rows in blocks(every[measured].tolist()):
            found = codec.measured(rows)
            lost, total = lost + found.lost, total + found.total
    return FittedCodec(codec, lost / total if total > 0 else 0.0, num_bytes)


def bits_budget(bits: float) -> Budget:
    """So many bits per channel and token."""
    return lambda spectrum, measured: bytes_for(bits, spectrum.basis.row_shape)


def loss_budget(teacher: str, lost_share: float) -> Budget:
    """The fewest bits that lose at most this share of the variance."""

    def num_bytes(spectrum: RowSpectrum, measured: Callable[[], NDArray[Any]]) -> int:
        bits = bits_for_loss(spectrum, measured(), lost_share)
        if bits is None:
            raise UsageError(
                f"{teacher}: codes of {MAX_BITS:g} bits lose more than {percent(lost_share)} of "
                "the variance of the pilot. Allow more, or store the features as they are."
            )
        return bytes_for(bits, spectrum.basis.row_shape)

    return num_bytes


def unlike_pilot(cache: Cache) -> list[str]:
    """A sentence for each teacher with shards whose codes lose SUSPICIOUS times the pilot's."""
    texts = []
    for name in cache.teachers:
        for kind, stored in cache.teacher(name).codecs.items():
            commits = cache.commits(name)
            lost = commits.lost(names.codes(kind))
            bad = commits.shards[lost > SUSPICIOUS * stored.lost_share]
            if bad.size:
                shown = ", ".join(map(str, bad[:10].tolist())) + (", ..." if bad.size > 10 else "")
                texts.append(
                    f"{name} {kind}: {counted(bad.size, 'shard')} of {len(commits)} ({shown}) lose "
                    f"up to {percent(lost.max())} of the variance, the pilot lost "
                    f"{percent(stored.lost_share)}: it was not like them. In a new cache take more "
                    "bits, or a pilot that holds such images."
                )
    return texts
