"""One pass over the shards that miss something: decode, run the teachers, write.

Every stage has threads of its own and the teachers never wait for one that could go on: images of
the next rows are decoded, the next batches are made ready, the features of the last ones are
rounded and copied, and full files are written, all while a batch runs in the calling thread. Of a
shard only the rows on their way are in memory, and shard boundaries do not show.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from phistill.cache import Cache, CommitRecord
from phistill.cache.format import names
from phistill.cache.shard_writer import FullFile
from phistill.compute.copies import Sent
from phistill.stats.fit.kept_sums import ShardSums

from .decode.image import DecodeSetup
from .decode.pending import PendingShard
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
from .shards.coding import CodingQueue, num_coders
from .shards.packing import Packing
from .shards.stages import Stages, after
from .shards.work import Output, Unit, Work
from .teachers.runner import TeacherRunner, environment, launch_together, sharing
from .teachers.to_host import BatchToHost

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2
"""Batches made ready before the teacher asks for them, and batches that may be on their way from
it: more would only take memory."""

PART_BYTES = 64 * 2**20
"""Pixels of the rows that are decoded together, all inputs of the teachers: a part of a shard."""

NUM_WRITERS = {"cuda": 4}
"""Files written at a time, by device; 2 elsewhere, so that one waits for the disk while the other
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
        build_runners(cache, new, specs=request.specs, options=options, device=device)
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
        self._num_coders = num_coders()
        self._landing: deque[Future[None]] = deque()
        self._coding = CodingQueue()
        self._writing: deque[Future[None]] = deque()
        self._committing: deque[Future[CommitRecord]] = deque()

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
        for owner, missing in self._missing.items():
            log.debug("%s: %d of %d shards are to be written", owner, len(missing), info.num_shards)
        mode = choose_mode(self._options.decode, self._num_images)
        log.debug("decoding in %s, as --decode %s has it", mode, self._options.decode)
        decoding = arriving_shards(
            self._source.read,
            rows_of_shards(self._cache, shards, self._part_rows()),
            DecodeSetup(
                DecodeRules.from_dict(info.decode),
                tuple(View.from_dict(view) for view in info.views),
                self._renderings(),
                info.seed,
            ),
            num_workers=self._options.num_workers,
            mode=mode,
        )
        self._watch = Stopwatch()
        self._source.expect(reads_of_shards(self._cache, shards))
        self._report()
        stages = Stages(self._num_writers, self._num_coders)
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

    def _flow(self, arriving: Iterator[PendingShard], stages: Stages) -> None:
        ahead: deque[tuple[Work, int, Future[Sent]]] = deque()

        def step() -> None:
            work, start, prepared = ahead.popleft()
            with self._watch.waiting_for_images():
                images = prepared.result()
            if len(self._landing) >= BATCHES_AHEAD:
                self._landing.popleft().result()
            launched = launch_together(work.runners, images, start)
            self._landing.append(stages.landing.submit(self._land, stages, work, launched, start))
            self._computed_rows += work.num_rows(start) * len(work.names)
            self._make_room()
            self._collect()
            self._packing.start(stages.packing)
            self._report()

        works: list[Work] = []
        pixels: Output | None = None
        unit = Unit(-1, 0)
        for part in arriving:
            if part.first == 0:
                if self._is_out_of_time():
                    self.out_of_time = True
                    break
                start, stop = self._cache.info.shard_range(part.shard)
                unit = Unit(part.shard, stop - start)
                works, pixels = list(self._works(unit)), self._pixels(unit)
            unit.parts.append((part.first, part.seen))
            for work in works:
                for start in work.arrived(part):
                    ahead.append((work, start, stages.preparing.submit(work.prepare, start)))
                    if len(ahead) > BATCHES_AHEAD:
                        step()
            if pixels is not None:
                if not ahead:
                    with self._watch.waiting_for_images():
                        part.complete()
                self._landing.append(stages.copying.submit(self._copy, stages, pixels, part))
                self._computed_rows += part.num_rows
                self._make_room()
                self._collect()
                self._report()
        while ahead:
            step()
        self._landing.append(stages.landing.submit(self._add_coded, stages, 0))
        while self._landing:
            self._landing.popleft().result()
        while self._writing:
            self._writing.popleft().result()
        while self._committing:
            self._count(self._committing.popleft().result())
        self._packing.wait()

    def _is_out_of_time(self) -> bool:
        limit_s = self._options.time_limit_s
        return limit_s is not None and time.monotonic() - self._started > limit_s

    def _works(self, unit: Unit) -> Iterator[Work]:
        wanted = {
            name: runner
            for name, runner in self._runners.items()
            if unit.shard in self._missing[name]
        }
        for group in sharing(wanted):
            outputs = [
                Output(
                    unit,
                    self._cache.shard_writer(name, unit.shard),
                    ShardSums(self._cache, name, unit.shard, fit=self._options.fit),
                )
                for name in group
            ]
            yield Work(unit, group, [wanted[name] for name in group], outputs)

    def _pixels(self, unit: Unit) -> Output | None:
        if unit.shard not in self._missing.get(names.PIXELS, ()):
            return None
        return Output(unit, self._cache.shard_writer(names.PIXELS, unit.shard))

    def _land(self, stages: Stages, work: Work, batches: Sequence[BatchToHost], start: int) -> None:
        """Keep a batch of each teacher, and have written what is full: a file, or the shard."""
        stop = start + work.num_rows(start)
        rejected, sha256 = work.unit.rejected(start, stop), work.unit.sha256(start, stop)
        for batch, output in zip(batches, work.outputs, strict=True):
            values, reasons = batch.result()
            unusable = {*reasons, *rejected}
            self._sum(stages, output, start, values, sha256, unusable)
            output.reasons |= {start + slot: reason for slot, reason in reasons.items()}
            if output.writer.is_coding:
                self._coding.put(stages.coding, output, values, unusable)
            else:
                full = output.writer.add(values, rejected=unusable)
                self._write(stages, output, full, self._environment)
        self._add_coded(stages, self._num_coders)

    def _add_coded(self, stages: Stages, num_left: int) -> None:
        for output, block in self._coding.take(num_left=num_left):
            self._write(stages, output, output.writer.add_block(block), self._environment)

    def _copy(self, stages: Stages, pixels: Output, part: PendingShard) -> None:
        values = part.complete().pixels[self._pixel_rendering()]
        full = pixels.writer.add({names.PIXELS: values})
        self._write(stages, pixels, full, self._pixel_environment)

    def _write(
        self,
        stages: Stages,
        output: Output,
        full: Sequence[FullFile],
        environment: Mapping[str, str],
    ) -> None:
        """Hand over full files, and after a shard's last one its commit, which waits for them: what
        it waits for was handed over before it."""
        output.files += [stages.writing.submit(output.writer.write, file) for file in full]
        self._writing.extend(output.files[len(output.files) - len(full) :])
        if output.writer.is_full:
            commit = stages.writing.submit(self._commit, output, environment)
            self._committing.append(commit)

    def _sum(
        self,
        stages: Stages,
        output: Output,
        start: int,
        values: Mapping[str, NDArray[Any]],
        sha256: Sequence[str | None],
        rejected: Set[int],
    ) -> None:
        """Have the moments summed that are taken in passing."""
        assert output.sums is not None, "a teacher's output"
        calls = output.sums.add(start, values, sha256=sha256, rejected=rejected)
        if start + len(sha256) == output.unit.num_rows:
            calls += output.sums.finish()
        for call in calls:
            output.files.append(stages.writing.submit(after, output.last_sum, call))
            output.last_sum = output.files[-1]
            self._writing.append(output.last_sum)

    def _commit(self, output: Output, environment: Mapping[str, str]) -> CommitRecord:
        for file in output.files:
            file.result()
        images, reasons = output.unit.images()
        return self._cache.commit(
            output.writer,
            images=images,
            reasons={**output.reasons, **reasons},
            environment=environment,
            before=None if output.sums is None else output.sums.keep,
        )

    def _make_room(self) -> None:
        """Wait until few enough files are being written: a slow disk must not fill the memory."""
        while len(self._writing) > 2 * self._num_writers:
            with self._watch.waiting_for_the_disk():
                self._writing.popleft().result()

    def _collect(self) -> None:
        """Count what has been committed meanwhile; raises what writing raised."""
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()
        while self._committing and self._committing[0].done():
            self._count(self._committing.popleft().result())

    def _part_rows(self) -> int:
        """A power of two: rows whose pixels are PART_BYTES, of a shard at most."""
        row_bytes = sum(3 * math.prod(rendering.size) for rendering in self._renderings())
        rows = max(1, min(self._cache.info.shard_rows, PART_BYTES // max(row_bytes, 1)))
        return 1 << (rows.bit_length() - 1)

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
