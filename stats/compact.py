"""The verb ``compact``: a smaller copy of a cache, with the statistics that hold for it."""

from __future__ import annotations

from dataclasses import dataclass

from phistill.cache import Cache
from phistill.cache.upkeep.compact import drop_removed
from phistill.cache.upkeep.copying import CopyProgress

from .fit.reuse import reuse_statistics


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What was written."""

    cache: Cache
    num_shards: int
    """Shards written by this call; 0 means that the copy was there already."""
    num_bytes: int
    num_statistics: int
    """Files of statistics that hold for the copy and were taken over."""


def compact(
    cache: Cache, out: str, *, workers: int = 4, progress: CopyProgress | None = None
) -> CompactReport:
    """Write ``cache`` without the images that were taken down to ``out``; errors as drop_removed.

    The partial moments of every shard that lost nothing come along, so that ``fit_stats`` reads
    only the others again.
    """
    report = drop_removed(cache, out, workers=workers, progress=progress)
    with report.cache.writing():
        num_statistics = reuse_statistics(cache, report.cache) if report.num_shards else 0
    return CompactReport(report.cache, report.num_shards, report.num_bytes, num_statistics)
