"""Stored statistics of a cache: where they lie, and reading them back.

What depends on rows that have changed since is refused by name.
"""

from __future__ import annotations

import msgspec

from phistill.cache import Cache
from phistill.errors import CorruptCache, MissingMoments, StaleMoments, UsageError

from ..description import Description
from ..moments.moments import Moments
from ..moments.pass_result import PassResult, moments_digest
from ..normalizer.normalizer import Normalizer
from .pieces import PassOptions, array_key
from .places import moments_folder


class MergedFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored with the merged moments of an array."""

    key: str
    """Of everything they depend on; see array_key."""
    options: PassOptions
    description: Description


def load_description(cache: Cache, teacher: str, kind: str) -> Description:
    """Phi of one array, the dispersion of a summary, and so on; errors as load_moments."""
    return load_merged(cache, teacher, kind)[1].description


def load_options(cache: Cache, teacher: str, kind: str) -> PassOptions:
    """The options the stored moments of one array were taken with; errors as load_moments."""
    return load_merged(cache, teacher, kind)[1].options


def load_moments(cache: Cache, teacher: str, kind: str) -> Moments:
    """The merged moments of one array.

    Raises MissingMoments when fit_stats has not run, StaleMoments when rows changed since,
    CorruptCache when the file is damaged, and UsageError for a teacher or kind the cache does not
    have.
    """
    return load_merged(cache, teacher, kind)[0].moments


def load_normalizer(
    cache: Cache,
    teacher: str,
    kind: str,
    method: str = "phi-s",
    **options: float,
) -> Normalizer:
    """A normalizer of one array: the stored one for phi-s, others fitted from the moments.

    Errors as load_moments and Normalizer.fit.
    """
    moments = load_moments(cache, teacher, kind)
    return normalizer_of(moments, cache, teacher, kind, method, **options)


def normalizer_of(
    moments: Moments, cache: Cache, teacher: str, kind: str, method: str, **options: float
) -> Normalizer:
    """``load_normalizer`` for who has the array's moments already."""
    digest = moments_digest(moments)
    path = normalizer_path(teacher, kind)
    if method == "phi-s" and not options:
        try:
            normalizer = Normalizer.from_bytes(cache.files.read(path))
        except FileNotFoundError:
            return Normalizer.fit(moments, method, moments_digest=digest)
        except UsageError as error:
            raise CorruptCache(
                f"{cache.files.where(path)} is damaged: {error} "
                f"Run `phistill fit-stats {cache.location}`."
            ) from error
        if normalizer.moments_digest == digest:
            return normalizer
    return Normalizer.fit(moments, method, moments_digest=digest, **options)


def load_merged(cache: Cache, teacher: str, kind: str) -> tuple[PassResult, MergedFacts]:
    """The sum over one array and what is stored with it; errors as load_moments."""
    cache.teacher(teacher).width(kind)  # UsageError for what the cache does not have
    path = merged_path(teacher, kind)
    try:
        data = cache.files.read(path)
    except FileNotFoundError as error:
        raise _missing(cache, teacher, kind) from error
    result, facts = PassResult.from_bytes(data, cache.files.where(path), MergedFacts)
    if facts.key != array_key(cache, teacher, kind, facts.options):
        raise StaleMoments(
            f"The statistics of {teacher} {kind} in {cache.location} were taken of "
            f"{result.num_rows} training rows, and its shards or split have changed since. "
            f"{_advice(cache)}"
        )
    return result, facts


def is_fitted(cache: Cache) -> bool:
    """Whether a cache can be trained from: statistics of all its teachers, and of these rows."""
    try:
        for teacher in cache.teachers:
            for kind in cache.teacher(teacher).kinds:
                load_moments(cache, teacher, kind)
    except (MissingMoments, StaleMoments):
        return False
    return True


def refuse_missing(cache: Cache, teacher: str, kind: str) -> None:
    """MissingMoments when fit_stats has not run; nothing is read."""
    cache.teacher(teacher).width(kind)
    if not cache.files.exists(merged_path(teacher, kind)):
        raise _missing(cache, teacher, kind)


def _missing(cache: Cache, teacher: str, kind: str) -> MissingMoments:
    return MissingMoments(
        f"{cache.location} has no statistics of {teacher} {kind} yet. {_advice(cache)}"
    )


def _advice(cache: Cache) -> str:
    return f"Run `phistill fit-stats {cache.location}`."


def stored_options(cache: Cache, teacher: str, kind: str) -> PassOptions | None:
    """The options of the moments that lie there, stale ones too; None without readable ones."""
    path = merged_path(teacher, kind)
    try:
        data = cache.files.read(path)
        return PassResult.from_bytes(data, cache.files.where(path), MergedFacts)[1].options
    except (FileNotFoundError, CorruptCache):
        return None


def merged_path(teacher: str, kind: str) -> str:
    """The file of an array's merged moments, relative to the cache."""
    return f"{moments_folder(teacher, kind)}/merged.safetensors"


def normalizer_path(teacher: str, kind: str, method: str = "phi-s") -> str:
    """The file of a stored normalizer, relative to the cache."""
    return f"teachers/{teacher}/normalizers/{kind}/{method}/normalizer.safetensors"
