"""Stage one: run every teacher over every image once and commit the features shard by shard.

A killed run goes on where it stopped: what is missing is what has no commit record. Several
processes may extract one cache, each its share of the shards (``share``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.format import names
from phistill.cache.storage.files import Files, open_files
from phistill.compute.devices import choose_device
from phistill.errors import UsageError

from .add_views import require_same_images
from .images.open_source import open_source
from .images.source import ImageSource
from .options import ExtractOptions
from .prepare import (
    Facts,
    Prepared,
    Request,
    build_runners,
    first_runners,
    holding,
    keep_out_of_the_way,
    prepare,
    prepare_once,
    silent,
)
from .progress import ExtractProgress
from .recheck import require_same_teacher
from .rejects import rejects
from .settings import CacheSettings
from .shard_pass import PassLimits, ShardPass
from .teachers.runner import TeacherRunner, environment
from .teachers.spec import TeacherSpec

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
    """Images of the source that the cache does not have; a worker with a share does not look."""
    out_of_time: bool
    """The time limit ended the run; the same call goes on."""
    missing_shards: tuple[int, ...]
    """Shards that somebody still has to extract, for whatever teacher."""


def extract(
    images: str | Path | ImageSource,
    cache_path: str | Path | Files,
    teachers: Sequence[str] = (),
    *,
    settings: CacheSettings | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[ExtractProgress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> ExtractReport:
    """Extract ``teachers`` (``[NAME=]SOURCE:MODEL[?options]``) over ``images`` into a cache.

    A new cache is made when there is none; otherwise missing shards are added, and new teachers.
    Without ``teachers`` every teacher of the cache is finished. With a share in the options other
    processes may do the same with other shares at once; with a scheduler its workers do the work.
    ``on_notice`` is told what is waited for. Raises CacheMismatch when the cache holds something
    else under a teacher's name, TooManyRejects when more rows are rejected than allowed,
    SourceError when images cannot be read, LockHeld when another process writes here, OutOfTime
    when the time limit comes while another worker prepares the cache.
    """
    started = time.monotonic()
    if options is not None and options.scheduler is not None:
        from .cluster import extract_on_cluster  # it imports this module

        return extract_on_cluster(
            images,
            cache_path,
            teachers,
            settings=settings or CacheSettings(),
            options=options,
            on_progress=on_progress,
            on_notice=on_notice,
        )
    request = make_request(images, cache_path, teachers, settings, options, on_notice)
    with ExitStack() as stack:
        if request.source is not images:
            stack.callback(request.source.close)
        prepared, work = _extract(request, on_progress, started)
    cache = prepared.cache
    if request.options.add_views:
        require_same_images(cache)
    return report_of(cache, prepared.facts, work, started)


class Work(Protocol):
    """What a run did itself, or what its tasks did."""

    num_shards: int
    written_bytes: int
    out_of_time: bool


def report_of(cache: Cache, facts: Facts, work: Work, started: float) -> ExtractReport:
    """What the run that ``started`` (a monotonic time) did, and how it leaves the cache."""
    return ExtractReport(
        cache=cache,
        num_shards=work.num_shards,
        num_repaired=facts.num_repaired,
        written_bytes=work.written_bytes,
        elapsed_s=time.monotonic() - started,
        rejects=rejects(cache),
        num_new_images=facts.num_new_images,
        out_of_time=work.out_of_time,
        missing_shards=tuple(missing_shards(cache)),
    )


def _extract(
    request: Request, on_progress: Callable[[ExtractProgress], None] | None, started: float
) -> tuple[Prepared, ShardPass]:
    share = request.options.share
    if share is None or share.count == 1:
        if request.must_list:
            # Before anything is locked or made: a wrong path leaves no trace.
            found = request.records
            assert found, "a source without images says so"
        built = first_runners(request)
        with request.files.writing():
            prepared = prepare(request, built)
            shards = prepared.cache.info.shards()
            return prepared, extract_shards(request, prepared, shards, on_progress, started)
    prepared = prepare_once(request, started)
    shards = share.of(missing_shards(prepared.cache, request.teachers))
    with holding(prepared.cache, shards, REFUSE_AFTER_S):
        return prepared, extract_shards(request, prepared, shards, on_progress, started)


def make_request(
    images: str | Path | ImageSource,
    cache_path: str | Path | Files,
    teachers: Sequence[str] = (),
    settings: CacheSettings | None = None,
    options: ExtractOptions | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Request:
    """What ``extract`` was asked for, checked before any work."""
    options = options or ExtractOptions()
    specs = tuple(TeacherSpec.parse(text) for text in teachers)
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise UsageError(f"two teachers are named {name!r}; name one with NAME=SOURCE:MODEL.")
    files = open_files(cache_path)
    if not store.exists(files):
        if not specs:
            raise UsageError("a new cache needs at least one --teacher, for example demo:clip.")
        keep_out_of_the_way(files)
    return Request(
        source=open_source(images, options.window_tars)
        if isinstance(images, str | Path)
        else images,
        files=files,
        specs=specs,
        settings=settings or CacheSettings(),
        options=options,
        device=choose_device(options.device, options.local_rank),
        on_notice=on_notice or silent,
    )


def missing_shards(cache: Cache, teachers: Collection[str] = ()) -> list[int]:
    """Shards that the pixels or one of the teachers miss, ascending; all teachers by default."""
    owners = [owner for owner in cache.owners if owner == names.PIXELS or owner in teachers]
    missing = (cache.missing_shards(owner) for owner in (owners if teachers else cache.owners))
    return sorted(set().union(*missing))


def stored_runner(cache: Cache, name: str, device: str = "auto") -> TeacherRunner:
    """A teacher of the cache, built again from its spec; CacheMismatch when it is another one."""
    options, target = ExtractOptions(), choose_device(device)
    return build_runners(cache, [name], specs=(), options=options, device=target)[name]


def extract_shards(
    request: Request,
    prepared: Prepared,
    shards: Collection[int],
    on_progress: Callable[[ExtractProgress], None] | None = None,
    started: float | None = None,
) -> ShardPass:
    """Extract what is missing of ``shards``, which the caller holds; keeps the teachers built."""
    cache, options, device = prepared.cache, request.options, request.device
    wanted = request.teachers or _unfinished(cache, shards)
    new = [name for name in wanted if name not in prepared.runners]
    prepared.runners.update(
        build_runners(
            cache,
            new,
            specs=request.specs,
            options=options,
            device=device,
            on_notice=request.on_notice,
        )
    )
    runners = {name: prepared.runners[name] for name in wanted}
    to_compare = {
        name: runner
        for name, runner in runners.items()
        if name not in prepared.compared and cache.missing_shards(name)
    }
    require_same_teacher(cache, request.source, to_compare, environment(device, **options.kernels))
    prepared.compared.update(to_compare)
    limits = PassLimits(
        options.num_workers,
        options.decode,
        options.max_reject_frac,
        options.time_limit_s,
        options.kernels,
    )
    started = time.monotonic() if started is None else started
    work = ShardPass(
        cache, request.source, runners, device, limits, on_progress, started, set(shards)
    )
    work.run()
    return work


def _unfinished(cache: Cache, shards: Collection[int]) -> list[str]:
    """The teachers that miss some of ``shards``."""
    return [name for name in cache.teachers if set(shards) & set(cache.missing_shards(name))]
