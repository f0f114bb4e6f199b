"""One pass over the shards that miss something: decode, run the teachers, write.

The three stages overlap: images of the next shard are decoded by a pool, the teachers run in the
calling thread, and a writer thread with a bounded queue publishes what is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cache import Cache, CommitRecord, names
from ..cache.errors import TooManyRejects
from .decode import DecodeRules
from .decoding import DecodedShard, Mode, ShardRows, decode_shards
from .runner import TeacherRunner, environment, run_together, sharing
from .sources import Source
from .views import Rendering, View

if TYPE_CHECKING:
    import torch

PIXEL_INTERPOLATION = "bicubic"
MAX_REJECT_FRAC = 0.01
"""Share of the rows that may be rejected when the caller does not say."""

FREE_REJECTS = 10
"""Rejects that are always allowed then: one bad file of twenty stops nothing."""


@dataclass(frozen=True, slots=True)
class ExtractProgress:
    """Where a run is; ``rows`` are counted over all teachers and the pixels."""

    done_rows: int
    total_rows: int
    num_rejects: int
    written_bytes: int
    elapsed_s: float


def rejects(cache: Cache) -> tuple[tuple[str, str], ...]:
    """(id, reason) of every rejected row, each row once."""
    found: dict[int, str] = {}
    for owner in cache.owners:
        for record in cache.commits(owner).values():
            for slot, reason in record.reasons.items():
                found.setdefault(record.start + slot, reason)
    if not found:
        return ()
    index = cache.index()
    ids = dict(zip(index["row"].to_pylist(), index["id"].to_pylist(), strict=True))
    return tuple((ids[row], found[row]) for row in sorted(found))


@dataclass(frozen=True, slots=True)
class PassLimits:
    """What a pass may use up."""

    num_workers: int | None
    decode: Mode
    max_reject_frac: float | None
    time_limit_s: float | None

    def exceeded(self, elapsed_s: float) -> bool:
        """Whether the time limit has passed."""
        return self.time_limit_s is not None and elapsed_s > self.time_limit_s


class ShardPass:
    """One pass over those of ``shards`` that miss something; the caller holds them for writing."""

    def __init__(
        self,
        cache: Cache,
        source: Source,
        runners: dict[str, TeacherRunner],
        device: torch.device,
        limits: PassLimits,
        on_progress: Callable[[ExtractProgress], None] | None,
        started: float,
        shards: Set[int],
    ) -> None:
        self._cache, self._source, self._runners = cache, source, runners
        self._limits, self._on_progress, self._started = limits, on_progress, started
        self._environment = environment(device)
        self._pixel_environment = environment(None)
        self.num_shards = self.written_bytes = self.done_rows = 0
        self.out_of_time = False
        pixels = {names.PIXELS} if cache.info.pixel_size else set()
        owners = pixels | set(runners)
        self._missing = {owner: shards & set(cache.missing_shards(owner)) for owner in owners}
        self.num_rejects = len(rejects(cache))

    def run(self) -> None:
        """Decode, run, write: three stages that overlap."""
        shards = sorted(set().union(*self._missing.values()))
        if not shards:
            return
        info = self._cache.info
        decoded = decode_shards(
            self._source,
            self._jobs(shards),
            rules=DecodeRules.from_dict(info.decode),
            views=[View.from_dict(view) for view in info.views],
            renderings=self._renderings(),
            seed=info.seed,
            num_workers=self._limits.num_workers,
            mode=self._limits.decode,
            num_rows=sum(stop - start for start, stop in map(info.shard_range, shards)),
        )
        self._report()
        with closing(decoded), ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            pending: list[Future[CommitRecord]] = []
            for shard in decoded:
                if self._limits.exceeded(time.monotonic() - self._started):
                    self.out_of_time = True
                    break
                for owner, arrays, reasons in self._compute(shard):
                    if len(pending) == 2:  # bounded: a slow disk must not fill the memory
                        self._count(pending.pop(0).result())
                    pending.append(
                        writer.submit(
                            self._cache.commit_shard,
                            owner,
                            shard.shard,
                            arrays,
                            images=shard.images,
                            reasons={**reasons, **shard.reasons},
                            environment=self._pixel_environment
                            if owner == names.PIXELS
                            else self._environment,
                        )
                    )
            for future in pending:
                self._count(future.result())

    def _compute(self, shard: DecodedShard) -> Iterator[tuple[str, dict[str, Any], dict[int, str]]]:
        if shard.shard in self._missing.get(names.PIXELS, ()):
            yield names.PIXELS, {names.PIXELS: shard.pixels[self._pixel_rendering()]}, {}
        wanted = {
            name: runner
            for name, runner in self._runners.items()
            if shard.shard in self._missing[name]
        }
        for group in sharing(wanted):
            runners = [wanted[name] for name in group]
            found = run_together(
                runners, shard.pixels[runners[0].rendering], runners[0].info.rows_per_forward
            )
            for name, (arrays, reasons) in zip(group, found, strict=True):
                for values in arrays.values():
                    values[list(shard.reasons)] = float("nan")
                yield name, arrays, reasons

    def _jobs(self, shards: Sequence[int]) -> Iterator[ShardRows]:
        index = self._cache.index()
        table = index.select(["row", "id", "uri", "offset", "length", "view"])
        starts = table["row"].to_numpy()
        for shard in shards:
            start, stop = self._cache.info.shard_range(shard)
            first = int(starts.searchsorted(start))
            part = table.slice(first, stop - start).to_pydict()
            yield ShardRows(
                shard, part["uri"], part["offset"], part["length"], part["view"], part["id"]
            )

    def _renderings(self) -> list[Rendering]:
        wanted = [runner.rendering for runner in self._runners.values()]
        if self._missing.get(names.PIXELS):
            wanted.append(self._pixel_rendering())
        return list(dict.fromkeys(wanted))

    def _pixel_rendering(self) -> Rendering:
        side = self._cache.info.pixel_size
        return Rendering((side, side), PIXEL_INTERPOLATION)

    def _count(self, record: CommitRecord) -> None:
        self.num_shards += 1
        self.written_bytes += sum(size for size, _ in record.files.values())
        self.done_rows += record.num_rows
        self._report()
        self._enforce_budget(record)

    def _enforce_budget(self, record: CommitRecord) -> None:
        if not record.reasons:
            return
        found = rejects(self._cache)
        self.num_rejects = len(found)
        total = self._cache.index().num_rows
        frac = self._limits.max_reject_frac
        allowed = max(MAX_REJECT_FRAC * total, FREE_REJECTS) if frac is None else frac * total
        if self.num_rejects > allowed:
            common = Counter(reason for _, reason in found).most_common(3)
            listed = "; ".join(f"{reason} ({count})" for reason, count in common)
            raise TooManyRejects(
                f"{self.num_rejects} of {total} rows were rejected, more than the allowed "
                f"{allowed:.0f}: {listed}. Mend the images, or allow more "
                "with --max-reject-frac; the work so far is kept."
            )

    def _report(self) -> None:
        if self._on_progress is None:
            return
        info = self._cache.info
        total = sum(
            stop - start
            for missing in self._missing.values()
            for start, stop in map(info.shard_range, missing)
        )
        self._on_progress(
            ExtractProgress(
                self.done_rows,
                total,
                self.num_rejects,
                self.written_bytes,
                time.monotonic() - self._started,
            )
        )
