"""Extraction on a dask.distributed cluster: a task for a few shards, teachers loaded once a worker.

Extracting a shard is a pure function of its number, so a task that runs again because its worker
was lost does no harm. What is committed stays; what the lost worker, if it only seemed lost, still
writes is locked, and waited for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.format import names
from phistill.cache.storage.files import Files
from phistill.cache.storage.open_files import open_files
from phistill.cache.upkeep.pack import pack_what_is_free
from phistill.compute.dask_client import connected, finished
from phistill.errors import LockHeld, counted

from .decode.shards import num_cores
from .images.open_source import is_plugin
from .images.source import ImageSource
from .images.tars.fetched_tar import is_remote
from .prepare import Prepared, PrepareReport, holding, if_prepared, prepare
from .progress import ExtractProgress
from .request import make_request
from .settings import CacheSettings, ExtractOptions
from .shard_pass import extract_shards
from .teachers.spec import TeacherSpec

log = logging.getLogger(__name__)

MAX_SHARDS_PER_TASK = 8
"""Inside a task, images of a shard are decoded while the teachers run on the one before."""
TASKS_PER_WORKER = 4
"""At least: so that the workers end together."""
ZOMBIE_LIMIT_S = 600.0
"""A worker that the scheduler lost sight of finishes its task within this."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know of a run; every path can be opened from anywhere."""

    token: str
    images: str | ImageSource
    cache: str
    teachers: tuple[str, ...]
    settings: CacheSettings
    options: ExtractOptions
    workers_per_host: int


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard that is committed, by a task or by one that was lost before."""

    owner: str
    shard: int
    num_rows: int
    num_bytes: int
    rejects: tuple[int, ...]
    """Rows."""


class _Session:
    """What a worker process keeps between the tasks of a run."""

    def __init__(self, job: Job) -> None:
        options = job.options
        cores = num_cores()
        if options.num_workers is None and cores == os.cpu_count():  # nobody bound this process
            options = replace(options, num_workers=max(1, cores // job.workers_per_host))
        self.request = make_request(job.images, job.cache, job.teachers, job.settings, options)
        self.prepared: Prepared | None = None
        self.lock = threading.Lock()
        """A worker with several threads still runs its teachers one task at a time."""


_sessions: dict[str, _Session] = {}
_sessions_lock = threading.Lock()


def _session(job: Job) -> _Session:
    """The session of a run; one of an earlier run is forgotten, and its teachers with it."""
    with _sessions_lock:
        if job.token not in _sessions:
            _sessions.clear()
            _sessions[job.token] = _Session(job)
        return _sessions[job.token]


def prepare_task(job: Job) -> PrepareReport:
    """Make or change the cache, unless other writers are there and nothing has to change."""
    session = _session(job)
    request = session.request
    with session.lock:
        try:
            with request.files.writing():
                session.prepared = prepared = prepare(request)
        except LockHeld:
            cache = None if request.options.repair else if_prepared(request)
            if cache is None:
                raise
            session.prepared = prepared = Prepared(cache, {})
    return prepared.report


def shards_task(job: Job, shards: tuple[int, ...]) -> list[ShardDone]:
    """Extract what is missing of some shards; returns all that is there of them then."""
    session = _session(job)
    request = session.request
    with session.lock:
        if session.prepared is None:
            session.prepared = Prepared(store.open(request.files), {})
        cache = session.prepared.cache
        with holding(cache, shards, ZOMBIE_LIMIT_S):
            extract_shards(request, session.prepared, shards)
    return [
        ShardDone(
            owner,
            record.shard,
            record.num_rows,
            record.num_bytes,
            tuple(record.start + slot for slot in record.reasons),
        )
        for owner in cache.owners
        for record in map(cache.commits(owner).get, shards)
        if record is not None
    ]


def pack_task(job: Job) -> None:
    """Pack what is finished and nobody writes."""
    session = _session(job)
    with session.lock:
        pack_what_is_free(store.open(session.request.files))


def extract_on_cluster(
    images: str | Path | ImageSource,
    cache_path: str | Path | Files,
    teachers: Sequence[str],
    *,
    settings: CacheSettings,
    options: ExtractOptions,
    on_progress: Callable[[ExtractProgress], None] | None,
    started: float,
) -> tuple[Cache, PrepareReport, Meter]:
    """Extract with the work done by the cluster's workers, neither images nor teachers being
    needed here; the cache, and what was done.

    The workers must see images and cache under the same paths. Raises what a worker raised.
    """
    scheduler = options.scheduler
    assert scheduler is not None, "extract sees to it"
    with connected(scheduler) as client:
        workers: dict[str, int] = client.nthreads()
        dashboard = client.dashboard_link or "off"
        log.info("%s at %s, dashboard %s", counted(len(workers), "worker"), scheduler, dashboard)
        if not workers:
            log.info("the cluster has no worker yet: waiting for one.")
        if max(workers.values(), default=1) > 1:
            log.info("a worker runs one task at a time, whatever its threads: start it with one.")
        hosts = Counter(address.rpartition(":")[0] for address in workers)
        job = Job(
            token=uuid.uuid4().hex,
            images=images if not isinstance(images, str | Path) else _absolute(images),
            cache=open_files(cache_path).absolute,
            teachers=tuple(teachers),
            settings=settings,
            options=_for_workers(options),
            workers_per_host=max(hosts.values(), default=1),
        )
        first = client.submit(prepare_task, job, key=f"prepare-{job.token}", pure=False)
        (prepared,) = (future.result() for future in finished(client, [first]))
        cache = store.open(cache_path)
        meter = Meter(cache, teachers, started, on_progress)
        futures = [
            client.submit(shards_task, job, shards, key=f"shards-{job.token}-{i}", pure=False)
            for i, shards in enumerate(_tasks(meter.shards, len(workers)))
        ]
        limit_s = options.time_limit_s
        left_s = None if limit_s is None else max(0.0, round(limit_s - meter.elapsed_s, 3))
        meter.count_all(finished(client, futures, left_s))
        if not meter.out_of_time:
            last = client.submit(pack_task, job, key=f"pack-{job.token}", pure=False)
            for future in finished(client, [last]):
                future.result()
    cache.catalogue.look_again()  # at what the tasks wrote
    if meter.out_of_time:
        log.info("the workers finish the shards that they are at.")
    return cache, prepared, meter


def _absolute(images: str | Path) -> str:
    """As every worker can open it, whatever folder it is in."""
    here = isinstance(images, Path) or not (is_remote(images) or is_plugin(images))
    return os.path.abspath(images) if here else str(images)


def _for_workers(options: ExtractOptions) -> ExtractOptions:
    """What of the options concerns a worker: the client keeps the time."""
    holdout, labels = options.holdout_file, options.labels_file
    return replace(
        options,
        scheduler=None,
        time_limit_s=None,
        holdout_file=None if holdout is None else holdout.absolute(),
        labels_file=None if labels is None else labels.absolute(),
    )


def _tasks(shards: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Shards in groups: large for few pauses, and small enough that the workers end together."""
    wanted = len(shards) // (TASKS_PER_WORKER * max(1, num_workers))
    size = max(1, min(MAX_SHARDS_PER_TASK, wanted))
    return [tuple(shards[start : start + size]) for start in range(0, len(shards), size)]


class Meter:
    """Adds up what the tasks did."""

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[str],
        started: float,
        on_progress: Callable[[ExtractProgress], None] | None,
    ) -> None:
        self._started, self._on_progress = started, on_progress
        wanted = [TeacherSpec.parse(text).name for text in teachers] or list(cache.teachers)
        pixels = [names.PIXELS] if cache.info.pixel_size else []
        self._missing = {
            (owner, shard) for owner in (*pixels, *wanted) for shard in cache.missing_shards(owner)
        }
        self.shards = sorted({shard for _, shard in self._missing})
        """Those that have to be extracted."""
        ranges = [cache.info.shard_range(shard) for _, shard in self._missing]
        self._total_rows = sum(stop - start for start, stop in ranges)
        self._num_images = sum(
            stop - start for start, stop in map(cache.info.shard_range, self.shards)
        )
        self.num_shards = self.written_bytes = self._num_rows = 0
        self.out_of_time = False
        self._rejected: set[int] = set()
        self._pass_started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def count_all(self, futures: Iterator[Any]) -> None:
        """Count what tasks committed as they finish, until the time is up."""
        self._report()
        try:
            for future in futures:
                for done in future.result():
                    self._count(done)
                future.release()
                self._report()
        except TimeoutError:
            self.out_of_time = True

    def _count(self, done: ShardDone) -> None:
        if (done.owner, done.shard) in self._missing:
            self.num_shards += 1
            self.written_bytes += done.num_bytes
            self._num_rows += done.num_rows
        self._rejected.update(done.rejects)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                ExtractProgress(
                    done_rows=self._num_rows,
                    computed_rows=self._num_rows,
                    total_rows=self._total_rows,
                    num_images=self._num_images,
                    num_rejects=len(self._rejected),
                    written_bytes=self.written_bytes,
                    elapsed_s=self.elapsed_s,
                    pass_s=time.monotonic() - self._pass_started,
                )
            )
