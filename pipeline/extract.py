"""Stage one: run every teacher over every image once and commit the features shard by shard.

A killed run goes on where it stopped: what is missing is what has no commit record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cache as store
from ..cache import Cache, CommitRecord, TeacherInfo, names
from ..cache.errors import CacheMismatch, TooManyRejects, UsageError
from .decode import DecodeRules
from .decoding import DecodedShard, ShardRows, decode_shards
from .index import build_index
from .runner import TeacherRunner, choose_device, environment
from .settings import CacheSettings
from .sources import Source, open_source
from .teachers import TeacherSpec
from .views import Rendering, View

PIXEL_INTERPOLATION = "bicubic"
FREE_REJECTS = 10
"""The reject budget is not enforced below this many: one bad file of twenty stops nothing."""


@dataclass(frozen=True, slots=True)
class ExtractProgress:
    """Where a run is; ``rows`` are counted over all teachers and the pixels."""

    done_rows: int
    total_rows: int
    num_rejects: int
    written_bytes: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What a run did."""

    cache: Cache
    num_shards: int
    """Shards committed by this run, over all owners; 0 means there was nothing to do."""
    written_bytes: int
    elapsed_s: float
    rejects: tuple[tuple[str, str], ...]
    """(id, reason) of every rejected row of the cache."""
    num_new_images: int
    """Images of the source that the cache does not have."""


def extract(
    images: str | Path | Source,
    cache_path: str | Path,
    teachers: Sequence[str] = (),
    *,
    settings: CacheSettings | None = None,
    device: str = "auto",
    autocast: str | None = None,
    rows_per_forward: int | None = None,
    num_workers: int | None = None,
    max_reject_frac: float = 0.01,
    on_progress: Callable[[ExtractProgress], None] | None = None,
) -> ExtractReport:
    """Extract ``teachers`` (``[NAME=]SOURCE:MODEL[?options]``) over ``images`` into a cache.

    A new cache is made when there is none; otherwise missing shards are added, and new teachers.
    Without ``teachers`` every teacher of the cache is finished. Raises CacheMismatch when the cache
    holds something else under a teacher's name, TooManyRejects when more than ``max_reject_frac``
    of the rows cannot be used, SourceError when images cannot be read.
    """
    started = time.monotonic()
    settings = settings or CacheSettings()
    source = open_source(images) if isinstance(images, str | Path) else images
    specs = [TeacherSpec.parse(text) for text in teachers]
    _refuse_twice([spec.name for spec in specs])
    target = choose_device(device)

    def runner(spec: TeacherSpec, name: str) -> TeacherRunner:
        return TeacherRunner(
            name,
            spec.text,
            spec.build(),
            target,
            autocast=autocast,
            rows_per_forward=rows_per_forward,
        )

    runners = {spec.name: runner(spec, spec.name) for spec in specs}
    entries = source.entries()
    cache_path = Path(cache_path)
    if not (cache_path / names.ROOT).exists():
        if not specs:
            raise UsageError("a new cache needs at least one --teacher, for example demo:clip.")
        info = settings.new_cache(
            num_rows=len(entries) * len(settings.views or (View(),)),
            max_row_bytes=max(_row_bytes(settings, [r.info for r in runners.values()])),
        )
        index = build_index(entries, num_views=len(info.views), seed=info.seed)
        _keep_out_of_the_way(cache_path)
        cache = store.create(cache_path, info, index)
    else:
        cache = store.open(cache_path)
        settings.check(cache.info, str(cache_path))
    with cache.writing():
        cache.files.sweep()
        for name, found in runners.items():
            _add_or_compare(cache, name, found)
        for name in cache.teachers:
            if name not in runners and not specs and cache.missing_shards(name):
                runners[name] = runner(TeacherSpec.parse(cache.teacher(name).spec), name)
                _add_or_compare(cache, name, runners[name])
        known = set(cache.index()["id"].to_pylist())
        job = _Extraction(cache, source, runners, target, max_reject_frac, on_progress, started)
        job.run(num_workers)
    return ExtractReport(
        cache=cache,
        num_shards=job.num_shards,
        written_bytes=job.written_bytes,
        elapsed_s=time.monotonic() - started,
        rejects=rejects(cache),
        num_new_images=sum(entry.id not in known for entry in entries),
    )


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


class _Extraction:
    """One pass over the shards that miss something."""

    def __init__(
        self,
        cache: Cache,
        source: Source,
        runners: dict[str, TeacherRunner],
        device: Any,
        max_reject_frac: float,
        on_progress: Callable[[ExtractProgress], None] | None,
        started: float,
    ) -> None:
        self._cache, self._source, self._runners = cache, source, runners
        self._max_reject_frac, self._on_progress = max_reject_frac, on_progress
        self._started = started
        self._environment = environment(device)
        self._pixel_environment = environment(None)
        self.num_shards = self.written_bytes = self._done_rows = 0
        pixels = {names.PIXELS} if cache.info.pixel_size else set()
        owners = pixels | set(runners)
        self._missing = {owner: set(cache.missing_shards(owner)) for owner in owners}
        self._rejected = len(rejects(cache))

    def run(self, num_workers: int | None) -> None:
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
            num_workers=num_workers,
        )
        self._report()
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            pending: list[Future[CommitRecord]] = []
            for shard in decoded:
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
        for name, runner in self._runners.items():
            if shard.shard in self._missing[name]:
                stored = self._cache.teacher(name)
                arrays, reasons = runner.run(
                    shard.pixels[runner.rendering], stored.rows_per_forward
                )
                for values in arrays.values():
                    values[list(shard.reasons)] = float("nan")
                yield name, arrays, reasons

    def _jobs(self, shards: Sequence[int]) -> Iterator[ShardRows]:
        index = self._cache.index()
        table = index.select(["row", "uri", "offset", "length", "view"])
        starts = table["row"].to_numpy()
        for shard in shards:
            start, stop = self._cache.info.shard_range(shard)
            first = int(starts.searchsorted(start))
            part = table.slice(first, stop - start).to_pydict()
            yield ShardRows(shard, part["uri"], part["offset"], part["length"], part["view"])

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
        self._done_rows += record.num_rows
        self._report()
        self._enforce_budget(record)

    def _enforce_budget(self, record: CommitRecord) -> None:
        if not record.reasons:
            return
        found = rejects(self._cache)
        self._rejected = len(found)
        total = self._cache.index().num_rows
        if self._rejected > max(self._max_reject_frac * total, FREE_REJECTS):
            common = Counter(reason for _, reason in found).most_common(3)
            listed = "; ".join(f"{reason} ({count})" for reason, count in common)
            raise TooManyRejects(
                f"{self._rejected} of {total} rows were rejected, more than "
                f"{self._max_reject_frac:.2%}: {listed}. Mend the images, or allow more with "
                "--max-reject-frac; the work so far is kept."
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
                self._done_rows,
                total,
                self._rejected,
                self.written_bytes,
                time.monotonic() - self._started,
            )
        )


def _add_or_compare(cache: Cache, name: str, runner: TeacherRunner) -> None:
    """Add a new teacher; refuse one that is not the one the cache was made with."""
    if name not in cache.teachers:
        cache.add_teacher(runner.info)
        return
    stored, given = cache.teacher(name).fingerprint, runner.info.fingerprint
    for field in sorted({*stored, *given}):
        if stored.get(field) != given.get(field):
            raise CacheMismatch(
                f"{cache.path} holds another teacher {name!r}: {field} is {stored.get(field)!r} "
                f"there, {given.get(field)!r} here. Give this one another name "
                f"(NAME=SOURCE:MODEL), or extract into another cache."
            )


def _row_bytes(settings: CacheSettings, teachers: Sequence[TeacherInfo]) -> list[int]:
    side = 224 if settings.pixel_size is None else settings.pixel_size
    return [side * side * 3, *(teacher.row_bytes for teacher in teachers)]


def _refuse_twice(given: Sequence[str]) -> None:
    for name, count in Counter(given).items():
        if count > 1:
            raise UsageError(f"two teachers are named {name!r}; name one with NAME=SOURCE:MODEL.")


def _keep_out_of_the_way(path: Path) -> None:
    """A folder with other things in it does not become a cache."""
    ours = {"index", "teachers", "pixels", "commits", names.LOCK}
    if path.is_dir() and (others := {entry.name for entry in path.iterdir()} - ours):
        raise UsageError(
            f"{path} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )
