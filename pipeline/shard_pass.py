"""One pass over the shards that miss something: decode, run the teachers, write.

Every stage has threads of its own and the teachers never wait for one that could go on: images of
the next shards are decoded, the next batches are made ready, the features of the last ones are
rounded and copied, and finished shards are written, all while a batch runs in the calling thread.
Shard boundaries do not show.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from phistill.cache import Cache, CommitRecord, ImageFacts
from phistill.cache.format import names
from phistill.cache.upkeep.pack import PackReport, pack
from phistill.compute.copies import Sent
from phistill.stats.fit.kept_sums import keep_sums

from .decode.image import DecodeSetup
from .decode.pending import DecodedShard, PendingShard
from .decode.rgb import DecodeRules
from .decode.shards import arriving_shards, choose_mode
from .decode.views import Rendering, View
from .images.source import ImageSource
from .index import reads_of_shards, rows_of_shards
from .prepare import Prepared
from .progress import ExtractProgress, Stopwatch
from .recheck import require_same_teacher
from .rejects import RejectBudget
from .request import Request
from .runners import build_runners
from .settings import ExtractOptions
from .teachers.runner import TeacherRunner, environment, launch_together, sharing
from .teachers.to_host import StoredRows

if TYPE_CHECKING:
    import torch

BATCHES_AHEAD = 2
"""Batches made ready before the teacher asks for them, and batches that may be on their way from
it: more would only take memory."""

NUM_WRITERS = {"cuda": 4}
"""Shards written at a time, by device; 2 elsewhere, so that one waits for the disk while the other
is encoded. One GPU with a large teacher gives more than a core can hash."""


def missing_shards(cache: Cache, teachers: Collection[str] = ()) -> list[int]:
    """Shards that the pixels or one of the teachers miss, ascending; all teachers by default."""
    owners = [owner for owner in cache.owners if owner == names.PIXELS or owner in teachers]
    missing = (cache.missing_shards(owner) for owner in (owners if teachers else cache.owners))
    return sorted(set().union(*missing))


def extract_shards(
    request: Request,
    prepared: Prepared,
    shards: Collection[int],
    on_progress: Callable[[ExtractProgress], None] | None = None,
    started: float | None = None,
) -> ShardPass:
    """Extract what is missing of ``shards``, which the caller holds; keeps the teachers built."""
    cache, options, device = prepared.cache, request.options, request.device
    wanted = request.teachers or [
        name for name in cache.teachers if set(shards) & set(cache.missing_shards(name))
    ]
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
    work = ShardPass(
        cache, request.source, runners, device, options, on_progress, started, set(shards)
    )
    work.run()
    return work


class ShardPass:
    """One pass over those of ``shards`` that miss something; the caller holds them for writing."""

    def __init__(
        self,
        cache: Cache,
        source: ImageSource,
        runners: dict[str, TeacherRunner],
        device: torch.device,
        options: ExtractOptions,
        on_progress: Callable[[ExtractProgress], None] | None,
        started: float | None,
        shards: Set[int],
    ) -> None:
        self._cache, self._source, self._runners = cache, source, runners
        self._options, self._on_progress = options, on_progress
        self._started = time.monotonic() if started is None else started
        self._environment = environment(device, **options.kernels)
        self._pixel_environment = environment(None)
        self.num_shards = self.written_bytes = self.done_rows = self._computed_rows = 0
        self._num_images = self._total_rows = 0
        self.out_of_time = False
        pixels = {names.PIXELS} if cache.info.pixel_size else set()
        owners = pixels | set(runners)
        self._missing = {owner: shards & set(cache.missing_shards(owner)) for owner in owners}
        self._packing = Packing(cache, shards, self._missing)
        self._budget = RejectBudget(cache, options.max_reject_frac)
        self._watch = Stopwatch()
        self._num_writers = NUM_WRITERS.get(device.type, 2)
        self._landing: deque[Future[None]] = deque()
        self._writing: deque[Future[CommitRecord]] = deque()

    def run(self) -> None:
        """Decode, run, write: stages that overlap."""
        self._budget.check()
        shards = sorted(set().union(*self._missing.values()))
        if not shards:
            return
        info = self._cache.info
        size = {s: stop - start for s in shards for start, stop in [info.shard_range(s)]}
        self._num_images = sum(size.values())
        self._total_rows = sum(size[s] for owner in self._missing.values() for s in owner)
        decoding = arriving_shards(
            self._source.read,
            rows_of_shards(self._cache, shards),
            DecodeSetup(
                DecodeRules.from_dict(info.decode),
                tuple(View.from_dict(view) for view in info.views),
                self._renderings(),
                info.seed,
            ),
            num_workers=self._options.num_workers,
            mode=choose_mode(self._options.decode, self._num_images),
        )
        self._watch = Stopwatch()
        self._source.expect(reads_of_shards(self._cache, shards))
        self._report()
        stages = _Stages(self._num_writers)
        # Decoding ends first: what is decoded, prepared or computed only is given up after a
        # failure; what is being written is finished.
        with stages, decoding as arriving:
            finished = False
            try:
                self._flow(arriving, stages)
                finished = not self.out_of_time
                self._budget.count_again()
                self._budget.check()
            finally:
                if not finished:  # nobody waits for what comes from afar
                    self._source.stop()

    def _flow(self, arriving: Iterator[PendingShard], stages: _Stages) -> None:
        ahead: deque[tuple[_Work, int, Future[Sent]]] = deque()

        def step() -> None:
            work, start, prepared = ahead.popleft()
            with self._watch.waiting_for_images():
                images = prepared.result()
            if len(self._landing) == BATCHES_AHEAD:
                self._landing.popleft().result()
            launched = launch_together(work.runners, images, start)
            self._landing.append(stages.landing.submit(work.rows.land, launched))
            work.landed.append(self._landing[-1])
            self._computed_rows += work.num_rows(start) * len(work.names)
            if work.is_last(start):
                for number, name in enumerate(work.names):
                    self._writing.append(stages.writing.submit(self._commit, work, number, name))
            self._collect()
            self._packing.start(stages.packing)
            self._report()

        for shard in arriving:
            if self._is_out_of_time():
                self.out_of_time = True
                break
            for work in self._works(shard):
                self._make_room()
                for start in work.starts:
                    ahead.append((work, start, stages.preparing.submit(work.prepare, start)))
                    if len(ahead) > BATCHES_AHEAD:
                        step()
            if shard.shard in self._missing.get(names.PIXELS, ()):
                if not ahead:
                    with self._watch.waiting_for_images():
                        shard.complete()
                self._make_room()
                self._writing.append(stages.writing.submit(self._commit_pixels, shard))
                self._computed_rows += shard.num_rows
                self._report()
        while ahead:
            step()
        while self._writing:
            self._count(self._writing.popleft().result())
        self._packing.wait()

    def _is_out_of_time(self) -> bool:
        limit_s = self._options.time_limit_s
        return limit_s is not None and time.monotonic() - self._started > limit_s

    def _works(self, shard: PendingShard) -> Iterator[_Work]:
        wanted = {
            name: runner
            for name, runner in self._runners.items()
            if shard.shard in self._missing[name]
        }
        for group in sharing(wanted):
            yield _Work(shard, group, [wanted[name] for name in group])

    def _commit(self, work: _Work, number: int, name: str) -> CommitRecord:
        for landed in work.landed:
            landed.result()
        shard = work.shard.complete()
        arrays, reasons = work.rows.result(number, list(shard.reasons))
        images, rejected = _facts(shard), {**reasons, **shard.reasons}
        keep_sums(self._cache, name, shard.shard, arrays, images=images, rejected=rejected)
        return self._cache.commit_shard(
            name,
            shard.shard,
            arrays,
            images=images,
            reasons=rejected,
            environment=self._environment,
        )

    def _commit_pixels(self, arriving: PendingShard) -> CommitRecord:
        shard = arriving.complete()
        return self._cache.commit_shard(
            names.PIXELS,
            shard.shard,
            {names.PIXELS: shard.pixels[self._pixel_rendering()]},
            images=_facts(shard),
            reasons=shard.reasons,
            environment=self._pixel_environment,
        )

    def _make_room(self) -> None:
        """Wait until few enough shards are being written: a slow disk must not fill the memory."""
        while len(self._writing) > self._num_writers:
            with self._watch.waiting_for_the_disk():
                record = self._writing.popleft().result()
            self._count(record)

    def _collect(self) -> None:
        """Count what has been written meanwhile; raises what writing raised."""
        while self._writing and self._writing[0].done():
            self._count(self._writing.popleft().result())

    def _renderings(self) -> tuple[Rendering, ...]:
        wanted = [runner.rendering for runner in self._runners.values()]
        if self._missing.get(names.PIXELS):
            wanted.append(self._pixel_rendering())
        return tuple(dict.fromkeys(wanted))

    def _pixel_rendering(self) -> Rendering:
        side = self._cache.info.pixel_size
        return Rendering((side, side), names.PIXEL_INTERPOLATION)

    def _count(self, record: CommitRecord) -> None:
        self.num_shards += 1
        self._packing.count(record)
        self.written_bytes += record.num_bytes
        self.done_rows += record.num_rows
        self._report()
        self._budget.spend(record)

    def _report(self) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            ExtractProgress(
                done_rows=self.done_rows,
                computed_rows=self._computed_rows,
                total_rows=self._total_rows,
                num_images=self._num_images,
                num_rejects=self._budget.num_rejects,
                written_bytes=self.written_bytes,
                elapsed_s=time.monotonic() - self._started,
                pass_s=self._watch.elapsed_s,
                images_wait_s=self._watch.images_s,
                disk_wait_s=self._watch.disk_s,
            )
        )


def _facts(shard: DecodedShard) -> ImageFacts:
    return ImageFacts.of(sha256=shard.sha256, size=shard.size, box=shard.box)


class _Stages:
    """The threads beside the teachers'."""

    def __init__(self, num_writers: int) -> None:
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.landing = ThreadPoolExecutor(1, thread_name_prefix="land")
        self.writing = ThreadPoolExecutor(num_writers, thread_name_prefix="write")
        self.packing = ThreadPoolExecutor(1, thread_name_prefix="pack")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.preparing.shutdown(cancel_futures=True)
        self.landing.shutdown(cancel_futures=True)
        self.writing.shutdown()
        self.packing.shutdown()


class Packing:
    """Ranges of shards that are packed as soon as all of them are committed, beside the work."""

    def __init__(self, cache: Cache, held: Set[int], missing: Mapping[str, Set[int]]) -> None:
        """Only ranges all of whose shards are ``held``; ``missing`` are to come, by owner."""
        self._cache = cache
        whole = {n for n, shards in cache.info.ranges().items() if set(shards) <= held}
        to_come = (self._number(shard) for shards in missing.values() for shard in shards)
        self._left = Counter(number for number in to_come if number in whole)
        self._started: list[Future[PackReport]] = []

    def count(self, record: CommitRecord) -> None:
        """A shard was committed."""
        self._left[self._number(record.shard)] -= 1

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Pack what is complete; the last range is for whoever ends the run."""
        complete = [number for number, left in self._left.items() if left == 0]
        for number in complete if len(self._left) > 1 else ():
            del self._left[number]
            self._started.append(pool.submit(pack, self._cache, {number}))

    def wait(self) -> None:
        """Raises what packing raised."""
        for packed in self._started:
            packed.result()

    def _number(self, shard: int) -> int:
        return shard // self._cache.info.pack_shards


class _Work:
    """Teachers that share a forward pass, over one shard."""

    def __init__(
        self, shard: PendingShard, names: Sequence[str], runners: Sequence[TeacherRunner]
    ) -> None:
        self.shard, self.names, self.runners = shard, tuple(names), runners
        self.rows = StoredRows([runner.info for runner in runners], shard.num_rows)
        self.starts = range(0, shard.num_rows, runners[0].info.rows_per_forward)
        self.landed: list[Future[None]] = []

    def is_last(self, start: int) -> bool:
        return start == self.starts[-1]

    def num_rows(self, start: int) -> int:
        """Of the batch at ``start``."""
        return min(self.starts.step, self.shard.num_rows - start)

    def prepare(self, start: int) -> Sent:
        """The teachers' input of the batch at ``start``, when its images are there."""
        first = self.runners[0]
        stop = start + self.num_rows(start)
        return first.prepare(self.shard.rows(first.rendering, start, stop))
