"""The pilot of an extraction: a teacher runs on some images, and its codec is fitted to them.

Rows of a cache are in random order, so its first training rows are a fair sample. Nothing of the
pilot is stored but the codec; its shards are extracted again with all others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float16

from phistill.cache import Cache
from phistill.cache.codes import FittedCodec, bytes_for
from phistill.cache.format.split import decide_sides
from phistill.compute.blas import one_blas_thread
from phistill.errors import CacheMismatch, UsageError, counted, percent
from phistill.stats import Moments
from phistill.stats.compacting import (
    KIND,
    MIN_PILOT,
    READ_BYTES,
    Budget,
    bits_budget,
    fit_pilot,
    loss_budget,
)

from ..decode.rgb import DecodeRules
from ..decode.shards import Mode, decode_shards
from ..decode.views import View
from ..images.source import ImageSource
from ..index import rows_of_shards
from ..settings import CodeSettings
from ..teachers.runner import TeacherRunner

log = logging.getLogger(__name__)

ROUNDING = 1e-6
"""Of a loss that is measured in parts of other sizes."""

PILOT_BYTES = 2**30
"""Of a pilot's features at most, which are held in memory."""

PART_BATCHES = 4
"""Forward passes whose images are decoded together: a shard may be more than fits the memory."""


def fit_to_pilot(
    cache: Cache,
    source: ImageSource,
    runner: TeacherRunner,
    settings: CodeSettings,
    *,
    num_workers: int | None = None,
    mode: Mode = "auto",
) -> FittedCodec | None:
    """The codec of a new teacher's patches; None for one that is to be stored as it is.

    Raises UsageError for a cache with fewer than MIN_PILOT usable training images or a loss that
    cannot be kept, DegenerateMoments where the patches do not vary.
    """
    name, budget = runner.info.name, budget_of(runner.info.name, settings)
    if budget is None:
        return None
    shape = runner.info.row_shape(KIND)
    row_bytes = 2 * int(np.prod(shape))
    wanted = min(settings.pilot_images, max(MIN_PILOT, PILOT_BYTES // row_bytes))
    log.info(f"{name}: a pilot of up to {counted(wanted, 'image')}, to fit the codec to.")
    pilot: Float16[np.ndarray, "n t c"] = np.empty((wanted, *shape), np.float16)
    num_rows = 0
    for rows in _training_rows(cache, source, runner, wanted, num_workers, mode):
        taken = rows[: wanted - num_rows]
        pilot[num_rows : num_rows + len(taken)] = taken
        num_rows += len(taken)
        if num_rows == wanted:
            break
    if num_rows < MIN_PILOT:
        raise UsageError(
            f"{name}: {counted(num_rows, 'usable training image')} for the pilot, and a codec "
            f"needs {MIN_PILOT} at least. Extract without bits; a few images take little room."
        )
    with one_blas_thread():
        moments = Moments.of(pilot[:num_rows])
    fitted = fit_pilot(
        moments,
        lambda some: pilot[some],
        num_rows,
        grid=runner.info.grid,
        budget=budget,
        block=max(1, READ_BYTES // row_bytes),
    )
    log.info(
        f"{name}: {counted(fitted.codec.bits, 'bit')} per channel, "
        f"{fitted.codec.num_bytes:,} bytes a row instead of {row_bytes:,}; they lose "
        f"{percent(fitted.lost_share)} of the variance of images that it was not fitted on."
    )
    return fitted


def require_same_codes(cache: Cache, teacher: str, settings: CodeSettings) -> None:
    """CacheMismatch where a teacher of the cache is not stored in the bits that are asked for, or
    lost more of its pilot than is allowed."""
    info, bits = cache.teacher(teacher), settings.bits_of(teacher)
    stored = info.codecs.get(KIND)
    if bits is None and settings.lost_share is None:
        return
    if stored is None:
        raise CacheMismatch(
            f"{teacher} of {cache.location} is stored as float16, but this run asks for codes. "
            f"Leave --bits and --lost out, or make a copy: phistill compact {cache.location} OUT "
            "--bits B."
        )
    if bits is not None and bytes_for(bits, info.row_shape(KIND)) != stored.budget:
        had = 8 * stored.budget / math.prod(info.row_shape(KIND))
        raise CacheMismatch(
            f"{teacher} of {cache.location} is stored in {counted(had, 'bit')} per channel, but "
            f"this run asks for {bits:g}. Leave --bits out to go on with those, or "
            "extract into another cache."
        )
    if settings.lost_share is not None and stored.lost_share > settings.lost_share + ROUNDING:
        raise CacheMismatch(
            f"The codes of {teacher} of {cache.location} lose {stored.lost_share:.4%} of "
            f"the variance, but this run allows {settings.lost_share:.4%}. Leave --lost out "
            "to go on with those, or extract into another cache."
        )


def budget_of(teacher: str, settings: CodeSettings) -> Budget | None:
    """What a teacher's patches may take; None where they are stored as they are."""
    if settings.lost_share is not None:
        return loss_budget(teacher, settings.lost_share)
    bits = settings.bits_of(teacher)
    return None if bits is None else bits_budget(bits)


def _training_rows(
    cache: Cache,
    source: ImageSource,
    runner: TeacherRunner,
    wanted: int,
    num_workers: int | None,
    mode: Mode,
) -> Iterator[Float16[np.ndarray, "n t c"]]:
    """Patches of the cache's rows, part by part, without what is held out or cannot be used."""
    info = cache.info
    shards = list(info.shards())
    decoded = decode_shards(
        source.read,
        rows_of_shards(cache, shards, PART_BATCHES * runner.info.rows_per_forward),
        rules=DecodeRules.from_dict(info.decode),
        views=[View.from_dict(view) for view in info.views],
        renderings=[runner.rendering],
        seed=info.seed,
        num_workers=num_workers,
        mode=mode,
        num_rows=min(info.num_rows, wanted),
    )
    try:
        for shard in decoded:
            arrays, reasons = runner.run(
                shard.pixels[runner.rendering], runner.info.rows_per_forward
            )
            split = cache.given_split(shard.shard)[shard.first : shard.first + len(shard.sha256)]
            heldout = decide_sides(shard.sha256, split, info)
            used = ~np.array(heldout, bool)
            used[[*reasons, *shard.reasons]] = False
            yield arrays[KIND][used]
    finally:
        decoded.close()
