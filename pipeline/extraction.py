"""Stage one: run every teacher over every image once and commit the features shard by shard.

A killed run goes on where it stopped: what is missing is what has no commit record. Several
processes may extract one cache, each its own shards (``worker``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phistill.cache import Cache
from phistill.cache.storage.files import Files
from phistill.cache.upkeep.pack import pack, pack_what_is_free
from phistill.display import Table
from phistill.errors import LockHeld
from phistill.stats import Description, fit_stats
from phistill.stats.coarse import CoarseArray, coarse_arrays
from phistill.stats.compacting import unlike_pilot

from .add_views import require_same_images
from .images.listings import last_listing
from .images.source import ImageSource
from .prepare import Prepared, PrepareReport, first_runners, holding, prepare, prepare_once
from .progress import ExtractProgress
from .rejects import rejects
from .request import Request, make_request
from .settings import CacheSettings, ExtractOptions
from .shard_pass import ShardPass, extract_shards, missing_shards

log = logging.getLogger(__name__)

REFUSE_AFTER_S = 1.0
"""Of a worker whose shards another one has."""


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What a run did."""

    cache: Cache
    num_shards: int
    """Shards committed by this run, over all owners; 0 means there was nothing to do."""
    num_repaired: int
    """Shards that were damaged and are among those."""
    written_bytes: int
    elapsed_s: float
    rejects: tuple[tuple[str, str], ...]
    """(id, reason) of every rejected row of the cache."""
    num_new_images: int
    """Images of the source that the cache does not have; one worker of several does not look."""
    left_out: Mapping[str, int]
    """What lies beside the images of the source, by kind, as they were last listed."""
    out_of_time: bool
    """The time limit ended the run; the same call goes on."""
    missing_shards: tuple[int, ...]
    """Shards that somebody still has to extract, for whatever teacher."""
    coarse: tuple[CoarseArray, ...]
    """What float16 holds badly of the teachers that were extracted, by a sample of their rows;
    ``statistics``, where there are some, say so of all."""
    unlike_pilot: tuple[str, ...]
    """A sentence for each coded teacher with shards that lose much more than its pilot."""
    statistics: Table[Description] | None
    """Of every array, where they were asked for and all shards are there."""


def extract(
    images: str | Path | ImageSource,
    cache_path: str | Path | Files,
    teachers: Sequence[str] = (),
    *,
    settings: CacheSettings | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[ExtractProgress], None] | None = None,
) -> ExtractReport:
    """Extract ``teachers`` (``[NAME=]SOURCE:MODEL[?options]``) over ``images`` into a cache.

    A new cache is made when there is none; otherwise missing shards are added, and new teachers.
    Without ``teachers`` every teacher of the cache is finished. With a ``worker`` in the options
    others may do the same with their shards at once; with a scheduler its workers do the work.
    Raises CacheMismatch when the cache holds something else under a teacher's name, TooManyRejects
    when more rows are rejected than allowed, SourceError when images cannot be read, LockHeld when
    another process writes here, OutOfTime when the time limit comes while another worker prepares
    the cache.
    """
    started = time.monotonic()
    options, settings = options or ExtractOptions(), settings or CacheSettings()
    work: Work
    if options.scheduler is not None:
        from .cluster import extract_on_cluster  # dask is optional

        cache, prepared, work = extract_on_cluster(
            images,
            cache_path,
            teachers,
            settings=settings,
            options=options,
            on_progress=on_progress,
            started=started,
        )
    else:
        request = make_request(images, cache_path, teachers, settings, options)
        with ExitStack() as stack:
            if request.source is not images:
                stack.callback(request.source.close)
            here, work = _extract(request, on_progress, started)
        cache, prepared = here.cache, here.report
    if options.add_views:
        require_same_images(cache)
    statistics = _fit(cache, options, work)
    return _report(cache, prepared, work, started, statistics)


def _fit(cache: Cache, options: ExtractOptions, work: Work) -> Table[Description] | None:
    """Finish the statistics that were taken in passing, if they were, and all shards are there."""
    if not options.fit or work.out_of_time:
        return None
    cache.refresh()
    if missing := missing_shards(cache):
        log.info(f"statistics: whoever extracts the last of {len(missing):,} shards finishes them.")
        return None
    try:
        return fit_stats(cache, scheduler=options.scheduler)
    except LockHeld as error:  # of several workers who end at once one does it
        log.info(f"statistics: {error}")
        return None


def _extract(
    request: Request, on_progress: Callable[[ExtractProgress], None] | None, started: float
) -> tuple[Prepared, ShardPass]:
    worker = request.options.worker
    if worker is None or worker.count == 1:
        if request.must_list:
            # Before anything is locked or made: a wrong path leaves no trace.
            assert request.records.num_rows, "a source without images says so"
        built = first_runners(request)
        with request.files.writing():
            prepared = prepare(request, built)
            shards = prepared.cache.info.shards()
            work = extract_shards(request, prepared, shards, on_progress, started)
            pack(prepared.cache)
            return prepared, work
    prepared = prepare_once(request, started)
    shards = worker.of(missing_shards(prepared.cache, request.teachers))
    with holding(prepared.cache, shards, REFUSE_AFTER_S):
        work = extract_shards(request, prepared, shards, on_progress, started)
    pack_what_is_free(prepared.cache)
    return prepared, work


class Work(Protocol):
    """What a run did itself, or what its tasks did."""

    num_shards: int
    written_bytes: int
    out_of_time: bool


def _report(
    cache: Cache,
    prepared: PrepareReport,
    work: Work,
    started: float,
    statistics: Table[Description] | None,
) -> ExtractReport:
    """What the run that ``started`` (a monotonic time) did, and how it leaves the cache."""
    return ExtractReport(
        cache=cache,
        num_shards=work.num_shards,
        num_repaired=prepared.num_repaired,
        written_bytes=work.written_bytes,
        elapsed_s=time.monotonic() - started,
        rejects=rejects(cache),
        num_new_images=prepared.num_new_images,
        left_out=prepared.left_out or last_listing(cache).get("left_out", {}),
        out_of_time=work.out_of_time,
        missing_shards=tuple(missing_shards(cache)),
        coarse=coarse_arrays(cache, cache.teachers)
        if work.num_shards and statistics is None
        else (),
        unlike_pilot=tuple(unlike_pilot(cache)) if work.num_shards else (),
        statistics=statistics,
    )
