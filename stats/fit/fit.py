"""fit_stats: the statistics of a cache's features.

Per array (a teacher's patches, summary or registers) the cache keeps partials, the merged moments
with the line a person reads, and the PHI-S normalizer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.format.info import DTYPES
from phistill.cache.storage.files import Files
from phistill.cache.upkeep.verify import damaged_statistics
from phistill.compute.blas import one_blas_thread
from phistill.display import Table
from phistill.errors import (
    CorruptCache,
    DegenerateMoments,
    MissingMoments,
    StaleMoments,
    UsageError,
    percent,
)

from ..coarse import coarse_channels
from ..description import Description, convergence, dispersion, effective_rank
from ..moments.pass_result import PassResult, moments_digest
from ..normalizer.normalizer import Normalizer
from .dask_graph import ProgressCallback, run_passes
from .kept_sums import forget_sums_in_passing, take_kept_sums
from .loading import MergedFacts, load_merged, merged_path, normalizer_path
from .partials import sharing_readers
from .pieces import (
    ArrayPlan,
    ArraySpec,
    PassOptions,
    effective_options,
    plan_array,
    sampled_rows,
)
from .places import moments_folder, shards_in_passing

log = logging.getLogger(__name__)


def fit_stats(
    cache: Cache | Path | str,
    *,
    teachers: Sequence[str] | None = None,
    exact: bool = False,
    tokens_per_image: int | None = None,
    max_images: int | None = None,
    seed: int = 0,
    scheduler: str | None = None,
    repair: bool = False,
    progress: ProgressCallback | None = None,
) -> Table[Description]:
    """Moments and PHI-S of every array of the named teachers (None: all), one description each.

    ``cache`` may be the path or URL of one. Only training rows that were accepted count. A run that
    was killed goes on with the partials it left, a cache that grew costs its new shards, and
    nothing is done where nothing changed. exact takes float64 products. tokens_per_image and
    max_images subsample by seed. It runs in threads of this process, or on the dask.distributed
    cluster whose scheduler has this address. repair reads every stored file first and makes damaged
    ones again. Warns where rows of codes are summed as they are decoded.

    Raises IncompleteCache while shards are missing, DegenerateMoments naming teacher and shard for
    NaN or features without spread; what was stored before is then left as it was. Where nothing is
    to be done nothing is locked or written.
    """
    cache = cache if isinstance(cache, Cache) else store.open(cache)
    options = PassOptions(
        exact=exact, tokens_per_image=tokens_per_image, max_images=max_images, seed=seed
    )
    chosen = cache.teachers if teachers is None else tuple(teachers)
    if not chosen:
        raise UsageError(f"{cache.location} has no teacher to take statistics of.")
    arrays = [(name, kind) for name in chosen for kind in cache.teacher(name).kinds]
    cache.catalogue.look_again()
    cache.require_complete(chosen)
    damaged = damaged_statistics(cache, chosen) if repair else []
    for finding in damaged:
        if finding.irreplaceable:
            warnings.warn(str(finding), stacklevel=2)
    is_whole = all(finding.irreplaceable for finding in damaged)
    done = {array: _current(cache, *array, options) for array in arrays} if is_whole else {}
    in_passing = any(shards_in_passing(cache.files, *array) for array in arrays)
    if done and all(done.values()) and not in_passing:
        log.debug("%s: the statistics are up to date", cache.location)
        return Table(description for description in done.values() if description is not None)
    with cache.writing():
        if repair:
            for finding in damaged_statistics(cache, chosen):
                if not finding.irreplaceable:
                    cache.files.delete(finding.path)
        done = {array: _current(cache, *array, options) for array in arrays}
        missing = [array for array in arrays if done[array] is None]
        for (name, kind), found in done.items():
            log.debug("%s/%s: %s", name, kind, "to be fitted" if found is None else "is up to date")
        plans = [_plan(cache, *array, options) for array in missing]
        for teacher, kind in arrays:
            if kind in cache.teacher(teacher).codecs:
                plan = plan_array(cache, teacher, kind, options)
                num_decoded = take_kept_sums(cache, plan)
                if text := _codes_text(cache, plan, num_decoded):
                    warnings.warn(text, stacklevel=2)
        with sharing_readers(cache):
            fits = run_passes(
                cache.files, plans, finish=finish, scheduler=scheduler, progress=progress
            )
        for array in arrays if options == PassOptions() else ():
            forget_sums_in_passing(cache, *array)
        # All of them or none: statistics that lie side by side were taken with the same options.
        made = dict(zip(missing, fits, strict=True))
        for array, fit in made.items():
            cache.write_small(normalizer_path(*array), fit.normalizer)
            cache.write_small(merged_path(*array), fit.merged)
    return Table(done[array] or made[array].description for array in arrays)


def _current(cache: Cache, teacher: str, kind: str, options: PassOptions) -> Description | None:
    """The stored description when it is of these rows and options and its normalizer is there."""
    try:
        _, facts = load_merged(cache, teacher, kind)
        Normalizer.from_bytes(cache.files.read(normalizer_path(teacher, kind)))
    except (FileNotFoundError, MissingMoments, StaleMoments, CorruptCache, UsageError):
        return None
    same = facts.options == effective_options(cache, teacher, kind, options)
    return facts.description if same else None


def _codes_text(cache: Cache, plan: ArrayPlan, num_decoded: int) -> str:
    """What a pass over codes is of, where that is not all it was asked for."""
    teacher, kind, options = plan.spec.teacher, plan.spec.kind, plan.spec.options
    if not num_decoded:
        return (
            f"{teacher} {kind}: exact changes nothing. The sums of the features stay as they were "
            "taken when they were coded."
            if options.exact
            else ""
        )
    lost = percent(cache.teacher(teacher).codecs[kind].lost_share)
    told = (
        f"{teacher} {kind}: {num_decoded:,} of {plan.num_rows:,} rows are summed as they are "
        f"decoded, without the {lost} of the variance that codes lose. "
    )
    if options.max_images is not None or options.tokens_per_image is not None:
        return told + (
            "The sums that were taken of the features, while they were coded, are of all rows and "
            "tokens: a pass without a sample is exact, and takes no longer."
        )
    return told + (
        "The sums that were taken of the features, while they were coded, are of other rows or "
        "not there. Where images were taken down or some rows were staged, that is so for good; "
        f"lost files of {cache.location}/{moments_folder(teacher, kind)}/ may be restored from a "
        "copy."
    )


def _plan(cache: Cache, teacher: str, kind: str, options: PassOptions) -> ArrayPlan:
    plan = plan_array(cache, teacher, kind, options)
    if not plan.groups:
        raise DegenerateMoments(
            f"teacher {teacher}, {kind}: no row is left to take statistics of. All "
            f"{cache.info.num_real_rows:,} rows are rejected, removed or held out; extract more "
            "images."
        )
    return plan


@dataclass(frozen=True, eq=False, slots=True)
class ArrayFit:
    """What is to be stored of one array, and the line that describes it."""

    description: Description
    normalizer: bytes
    """The file of the PHI-S normalizer."""
    merged: bytes
    """The file of the merged moments."""


def finish(files: Files, spec: ArraySpec, result: PassResult) -> ArrayFit:
    """Fit PHI-S and describe the array. Nothing is stored yet."""
    moments = result.moments
    cache = store.open(files)
    try:
        normalizer = Normalizer.fit(moments, "phi-s", moments_digest=moments_digest(moments))
    except DegenerateMoments as error:
        shards = sorted(cache.commits(spec.teacher))
        where = f"teacher {spec.teacher}, {spec.kind}, shards {shards[0]} to {shards[-1]}"
        others = ",".join(name for name in cache.teachers if name != spec.teacher)
        apart = f" The others can do without it: --teachers {others}." if others else ""
        raise DegenerateMoments(f"{where}: {error}{apart}") from error
    with one_blas_thread():
        description = _describe(cache, spec, result, normalizer)
    facts = MergedFacts(key=spec.key, options=spec.options, description=description)
    return ArrayFit(description, normalizer.to_bytes(), result.to_bytes(facts))


def _describe(
    cache: Cache, spec: ArraySpec, result: PassResult, normalizer: Normalizer
) -> Description:
    moments = result.moments
    std = np.sqrt(moments.variance)
    angle = None
    if spec.kind == "summary":
        rows = sampled_rows(cache, spec.teacher, spec.options)
        angle = dispersion(cache.reader(spec.teacher, spec.kind), rows, moments.mean)
    return Description(
        teacher=spec.teacher,
        kind=spec.kind,
        width=moments.width,
        num_vectors=moments.n,
        mean_min=float(moments.mean.min()),
        mean_max=float(moments.mean.max()),
        std_min=float(std.min()),
        std_max=float(std.max()),
        phi=normalizer.scale,
        effective_rank=effective_rank(moments.spectrum[0]),
        rotation=normalizer.rotation or "",
        num_rows=result.num_rows,
        outlier_share=result.squared_norms.top_share(),
        dispersion=angle,
        convergence=convergence(result),
        coarse=coarse_channels(moments.mean, std, DTYPES[spec.kind]),
    )
