"""fit_stats: the statistics of a cache's features, and reading them back.

Per array (a teacher's patches, summary or registers) the cache keeps partials, the merged moments
with the line a person reads, and the PHI-S normalizer. What depends on rows that have changed since
is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.storage.files import Files
from phistill.cache.upkeep.verify import damaged_statistics
from phistill.compute.blas import one_blas_thread
from phistill.errors import (
    CorruptCache,
    DegenerateMoments,
    MissingMoments,
    StaleMoments,
    UsageError,
)

from ..description import StatsRow, convergence, effective_rank
from ..moments.dispersion import dispersion
from ..moments.moments import Moments
from ..moments.pass_result import Stored, Summary, moments_digest
from ..normalizer.normalizer import Normalizer
from .partials import lending, moments_folder
from .pieces import ArrayPlan, ArraySpec, PassOptions, Trim, array_key, plan_array, sample_rows
from .schedule import ProgressCallback, run


def fit_stats(
    cache: Cache,
    *,
    teachers: Sequence[str] | None = None,
    exact: bool = False,
    tokens_per_image: int | None = None,
    max_images: int | None = None,
    seed: int = 0,
    trim: float = 0.0,
    device: str = "cpu",
    workers: int | None = None,
    scheduler: str | None = None,
    repair: bool = False,
    progress: ProgressCallback | None = None,
) -> list[StatsRow]:
    """Moments and PHI-S of every array of the named teachers (None: all); one row per array.

    Only training rows that were accepted count. A run that was killed goes on with the partials it
    left, a cache that grew costs its new shards, and nothing is done where nothing changed. exact
    takes float64 products. tokens_per_image and max_images subsample by seed. trim leaves out that
    fraction of tokens, those farthest from the mean, in a second pass; summaries stay whole. device
    is cpu (NumPy) or a torch device for the products. workers and scheduler say where it runs; see
    schedule.run. repair reads every stored file first and makes damaged ones again. Raises
    IncompleteCache while shards are missing, DegenerateMoments naming teacher and shard for NaN or
    features without spread; what was stored before is then left as it was.
    """
    options = PassOptions(
        exact=exact,
        tokens_per_image=tokens_per_image,
        max_images=max_images,
        seed=seed,
        trim=trim,
        device=device,
    )
    chosen = cache.teachers if teachers is None else tuple(teachers)
    if not chosen:
        raise UsageError(f"{cache.location} has no teacher to take statistics of.")
    arrays = [(name, kind) for name in chosen for kind in cache.teacher(name).kinds]
    cache.require_complete(chosen)
    compute = partial(
        run, cache.files, finish=finish, workers=workers, scheduler=scheduler, progress=progress
    )
    with cache.writing():
        if repair:
            for finding in damaged_statistics(cache, chosen):
                cache.files.delete(finding.path)
        done = {array: _current_row(cache, *array, _for_kind(array, options)) for array in arrays}
        missing = [array for array in arrays if done[array] is None]
        with lending(cache):
            plain = replace(options, trim=0.0)
            passed = compute([_plan(cache, *array, plain) for array in missing])
            made = dict(zip(missing, passed, strict=True))
            if trim:
                again = [array for array in missing if _trims(array)]
                plans = [_trimmed(cache, *array, options, made[array]) for array in again]
                made |= zip(again, compute(plans), strict=True)
        # All of them or none: statistics that lie side by side were taken with the same options.
        for array, fit in made.items():
            cache.write_small(normalizer_path(*array), fit.normalizer)
            cache.write_small(merged_path(*array), fit.moments)
    return [done[array] or made[array].row for array in arrays]


def _trims(array: tuple[str, str]) -> bool:
    return array[1] != "summary"


def _for_kind(array: tuple[str, str], options: PassOptions) -> PassOptions:
    return options if _trims(array) else replace(options, trim=0.0)


def _trimmed(
    cache: Cache, teacher: str, kind: str, options: PassOptions, first: Fitted
) -> ArrayPlan:
    """The second pass over an array: without the tokens that were farthest in the first."""
    summary = Stored.from_bytes(first.moments, f"the first pass over {teacher} {kind}").summary
    limit = summary.energies.limit(options.trim)
    return plan_array(cache, teacher, kind, options, Trim(summary.moments.mean, limit))


def _plan(cache: Cache, teacher: str, kind: str, options: PassOptions) -> ArrayPlan:
    plan = plan_array(cache, teacher, kind, options)
    if not plan.groups:
        raise DegenerateMoments(
            f"teacher {teacher}, {kind}: no row is left to take statistics of. All "
            f"{cache.num_rows} rows are rejected, removed or held out; extract more images."
        )
    return plan


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """What is stored of one array, and the row that describes it."""

    row: StatsRow
    normalizer: bytes
    """The file of the PHI-S normalizer."""
    moments: bytes
    """The file of the merged moments."""


def finish(files: Files, spec: ArraySpec, summary: Summary) -> Fitted:
    """Fit PHI-S and describe the array. Nothing is stored yet."""
    moments = summary.moments
    cache = store.open(files)
    try:
        fitted = Normalizer.fit(moments, method="phi-s", moments_digest=moments_digest(moments))
    except DegenerateMoments as error:
        shards = sorted(cache.commits(spec.teacher))
        where = f"teacher {spec.teacher}, {spec.kind}, shards {shards[0]} to {shards[-1]}"
        others = ",".join(name for name in cache.teachers if name != spec.teacher)
        apart = f" The others can do without it: --teachers {others}." if others else ""
        raise DegenerateMoments(f"{where}: {error}{apart}") from error
    with one_blas_thread():
        row = _describe(cache, spec, summary, fitted)
    facts = {"key": spec.key, "options": asdict(spec.options), "row": row.to_dict()}
    return Fitted(row, fitted.to_bytes(), Stored(summary, facts).to_bytes())


def _describe(cache: Cache, spec: ArraySpec, summary: Summary, fitted: Normalizer) -> StatsRow:
    moments = summary.moments
    std = np.sqrt(moments.variance)
    angle = None
    if spec.kind == "summary":
        rows = sample_rows(cache.rows([spec.teacher], split="train"), spec.options)
        angle = dispersion(cache.reader(spec.teacher, spec.kind), rows, moments.mean)
    return StatsRow(
        teacher=spec.teacher,
        kind=spec.kind,
        width=moments.width,
        num_vectors=moments.n,
        mean_min=float(moments.mean.min()),
        mean_max=float(moments.mean.max()),
        std_min=float(std.min()),
        std_max=float(std.max()),
        phi=fitted.scale,
        effective_rank=effective_rank(moments.spectrum[0]),
        rotation=fitted.rotation or "",
        num_rows=summary.num_rows,
        outlier_share=summary.energies.top_share(),
        dispersion=angle,
        convergence=convergence(summary),
    )


def stored_rows(cache: Cache) -> list[StatsRow]:
    """The row of every array of the cache, as fit_stats returned it."""
    arrays = [(name, kind) for name in cache.teachers for kind in cache.teacher(name).kinds]
    return [StatsRow.from_dict(_load(cache, *array).facts["row"]) for array in arrays]


def load_row(cache: Cache, teacher: str, kind: str) -> StatsRow:
    """The row of one array: its phi, and the dispersion of a summary; errors as load_moments."""
    return StatsRow.from_dict(_load(cache, teacher, kind).facts["row"])


def load_options(cache: Cache, teacher: str, kind: str) -> PassOptions:
    """The options the stored moments of one array were taken with; errors as load_moments."""
    return PassOptions(**_load(cache, teacher, kind).facts["options"])


def stored_options(cache: Cache, teacher: str, kind: str) -> PassOptions | None:
    """The options of the moments that lie there, stale ones too; None without readable ones."""
    path = merged_path(teacher, kind)
    try:
        stored = Stored.from_bytes(cache.files.read(path), cache.files.where(path))
        return PassOptions(**stored.facts["options"])
    except (FileNotFoundError, TypeError, CorruptCache):
        return None


def load_moments(cache: Cache, teacher: str, kind: str) -> Moments:
    """The merged moments of one array.

    Raises MissingMoments when fit_stats has not run, StaleMoments when rows changed since, and
    UsageError for a teacher or kind the cache does not have.
    """
    return _load(cache, teacher, kind).summary.moments


def fitted(
    cache: Cache, teacher: str, kind: str, method: str = "phi-s", **options: float
) -> Normalizer:
    """A normalizer of one array: the stored one for phi-s, others fitted from the moments."""
    moments = load_moments(cache, teacher, kind)
    digest = moments_digest(moments)
    path = normalizer_path(teacher, kind)
    if method == "phi-s" and not options and cache.files.exists(path):
        try:
            normalizer = Normalizer.from_bytes(cache.files.read(path))
        except UsageError as error:
            raise CorruptCache(
                f"{cache.files.where(path)} is damaged: {error} "
                f"Run `phistill fit-stats {cache.location}`."
            ) from error
        if normalizer.moments_digest == digest:
            return normalizer
    return Normalizer.fit(moments, method, moments_digest=digest, **options)


def _current_row(cache: Cache, teacher: str, kind: str, options: PassOptions) -> StatsRow | None:
    """The stored row when it is of these rows and options and its normalizer is there."""
    try:
        stored = _load(cache, teacher, kind)
    except (MissingMoments, StaleMoments, CorruptCache):
        return None
    if stored.facts["options"] != asdict(options):
        return None
    try:
        Normalizer.from_bytes(cache.files.read(normalizer_path(teacher, kind)))
    except (FileNotFoundError, UsageError):
        return None
    return StatsRow.from_dict(stored.facts["row"])


def _load(cache: Cache, teacher: str, kind: str) -> Stored:
    cache.teacher(teacher).width(kind)  # UsageError for what the cache does not have
    path = merged_path(teacher, kind)
    again = f"Run `phistill fit-stats {cache.location}`."
    try:
        data = cache.files.read(path)
    except FileNotFoundError as error:
        raise MissingMoments(
            f"{cache.location} has no statistics of {teacher} {kind} yet. {again}"
        ) from error
    stored = Stored.from_bytes(data, cache.files.where(path))
    options = PassOptions(**stored.facts["options"])
    if stored.facts["key"] != array_key(cache, teacher, kind, options):
        raise StaleMoments(
            f"The statistics of {teacher} {kind} in {cache.location} were taken of "
            f"{stored.summary.num_rows} training rows, and its shards or split have changed since. "
            f"{again}"
        )
    return stored


def merged_path(teacher: str, kind: str) -> str:
    """The file of an array's merged moments, relative to the cache."""
    return f"{moments_folder(teacher, kind)}/merged.safetensors"


def normalizer_path(teacher: str, kind: str, method: str = "phi-s") -> str:
    """The file of a stored normalizer, relative to the cache."""
    return f"teachers/{teacher}/normalizers/{kind}/{method}/normalizer.safetensors"
