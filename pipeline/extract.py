"""Stage one: run every teacher over every image once and commit the features shard by shard.

A killed run goes on where it stopped: what is missing is what has no commit record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import cache as store
from ..cache import Cache, TeacherInfo, growth, names
from ..cache.errors import CacheMismatch, UsageError
from ..cache.files import Files, open_files
from ..cache.verify import discard, verify
from .decoding import Mode
from .holdout import hold_out
from .index import build_index
from .live import require_same_teacher
from .runner import TeacherRunner, choose_device, environment
from .settings import CacheSettings
from .shard_pass import ExtractProgress, PassLimits, ShardPass, rejects
from .sources import Entry, Source, open_source
from .teachers import TeacherSpec
from .views import View

if TYPE_CHECKING:
    import torch


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
    """Images of the source that the cache does not have."""
    out_of_time: bool
    """The time limit ended the run; the same call goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractOptions:
    """How a run goes about it; nothing here is part of what the cache is."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    autocast: str | None = None
    """Arithmetic of a new teacher: float32, bfloat16, float16; default bfloat16 on CUDA."""
    rows_per_forward: int | None = None
    """Rows in one forward pass of a new teacher; stored with it."""
    num_workers: int | None = None
    """Decoding workers; default one per core."""
    decode: Mode = "auto"
    """Decode in ``threads`` or in ``processes``, which a bad decoder cannot take down; ``auto``
    takes processes for long runs."""
    max_reject_frac: float | None = None
    """The run stops when more than this fraction of all rows is rejected; None: one percent, but
    never for ten rejects or fewer."""
    time_limit_s: float | None = None
    """The run stops after the shard in which this is exceeded."""
    append: bool = False
    """Add images of the source that the cache does not have, as a new segment."""
    holdout_file: Path | None = None
    """Ids that are held out, one per line; images that are new to the cache follow it."""
    repair: bool = False
    """Check every byte first and extract damaged shards again."""

    def __post_init__(self) -> None:
        if self.max_reject_frac is not None and not 0.0 <= self.max_reject_frac <= 1.0:
            raise UsageError(f"max_reject_frac={self.max_reject_frac} must be in [0, 1].")
        for name in ("rows_per_forward", "num_workers", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name}={value} must be positive.")


def extract(
    images: str | Path | Source,
    cache_path: str | Path,
    teachers: Sequence[str] = (),
    *,
    settings: CacheSettings | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[ExtractProgress], None] | None = None,
) -> ExtractReport:
    """Extract ``teachers`` (``[NAME=]SOURCE:MODEL[?options]``) over ``images`` into a cache.

    A new cache is made when there is none; otherwise missing shards are added, and new teachers.
    Without ``teachers`` every teacher of the cache is finished. Raises CacheMismatch when the cache
    holds something else under a teacher's name, TooManyRejects when more rows are rejected than
    allowed, SourceError when images cannot be read, LockHeld when another process writes here.
    """
    started = time.monotonic()
    settings, options = settings or CacheSettings(), options or ExtractOptions()
    source = open_source(images) if isinstance(images, str | Path) else images
    specs = [TeacherSpec.parse(text) for text in teachers]
    _refuse_twice([spec.name for spec in specs])
    files = open_files(cache_path)
    exists = store.exists(files)
    if not exists and not specs:
        raise UsageError("a new cache needs at least one --teacher, for example demo:clip.")
    if not exists:
        _keep_out_of_the_way(files)
    entries = source.entries()
    if options.holdout_file is not None:
        entries = hold_out(entries, options.holdout_file)
    device = choose_device(options.device)
    with files.writing():
        stored = store.open(files) if exists else None
        runners = {spec.name: _runner(spec, stored, device, options) for spec in specs}
        if stored is None:
            cache = _create(files, entries, settings, [runner.info for runner in runners.values()])
        else:
            settings.check(stored.info, stored.location)
            cache = stored
        cache.files.sweep()
        num_repaired = discard(cache, verify(cache)) if options.repair else 0
        new = _new_entries(cache, entries)
        if new and options.append:
            index = build_index(
                new,
                num_views=len(cache.info.views),
                seed=cache.info.seed,
                start=growth.next_row(cache.info),
            )
            growth.add_segment(cache, index)
            new = []
        for name, runner in runners.items():
            _add_or_compare(cache, name, runner)
        if not specs:
            runners = _unfinished(cache, device, options)
        unfinished = {n: found for n, found in runners.items() if cache.missing_shards(n)}
        require_same_teacher(cache, source, unfinished, environment(device))
        limits = PassLimits(
            options.num_workers, options.decode, options.max_reject_frac, options.time_limit_s
        )
        work = ShardPass(cache, source, runners, device, limits, on_progress, started)
        work.run()
    return ExtractReport(
        cache=cache,
        num_shards=work.num_shards,
        num_repaired=num_repaired,
        written_bytes=work.written_bytes,
        elapsed_s=time.monotonic() - started,
        rejects=rejects(cache),
        num_new_images=len(new),
        out_of_time=work.out_of_time,
    )


def _runner(
    spec: TeacherSpec, cache: Cache | None, device: torch.device, options: ExtractOptions
) -> TeacherRunner:
    """The teacher of a spec; one that the cache has keeps its arithmetic and its batches."""
    autocast, rows = options.autocast, options.rows_per_forward
    if cache is not None and spec.name in cache.teachers:
        stored = cache.teacher(spec.name)
        autocast = autocast or stored.identity.get("autocast")
        rows = stored.rows_per_forward
    return TeacherRunner(
        spec.name,
        spec.text,
        spec.build(),
        device,
        autocast=autocast,
        rows_per_forward=rows,
    )


def _unfinished(
    cache: Cache, device: torch.device, options: ExtractOptions
) -> dict[str, TeacherRunner]:
    """Runners of the cache's own teachers that miss shards, built from their stored specs."""
    runners = {}
    for name in cache.teachers:
        if cache.missing_shards(name):
            runners[name] = _stored_runner(cache, name, device, options)
    return runners


def stored_runner(cache: Cache, name: str, device: str = "auto") -> TeacherRunner:
    """A teacher of the cache, built again from its spec; CacheMismatch when it is another one."""
    return _stored_runner(cache, name, choose_device(device), ExtractOptions())


def _stored_runner(
    cache: Cache, name: str, device: torch.device, options: ExtractOptions
) -> TeacherRunner:
    runner = _runner(
        TeacherSpec.parse(f"{name}={cache.teacher(name).spec}"), cache, device, options
    )
    _add_or_compare(cache, name, runner)
    return runner


def _create(
    files: Files, entries: Sequence[Entry], settings: CacheSettings, teachers: Sequence[TeacherInfo]
) -> Cache:
    side = 224 if settings.pixel_size is None else settings.pixel_size
    info = settings.new_cache(
        num_rows=len(entries) * len(settings.views or (View(),)),
        max_row_bytes=max(side * side * 3, *(teacher.row_bytes for teacher in teachers)),
    )
    return store.create(
        files, info, build_index(entries, num_views=len(info.views), seed=info.seed)
    )


def _new_entries(cache: Cache, entries: Sequence[Entry]) -> list[Entry]:
    known = set(cache.index()["id"].to_pylist())
    return [entry for entry in entries if entry.id not in known]


def _add_or_compare(cache: Cache, name: str, runner: TeacherRunner) -> None:
    """Add a new teacher; refuse one that is not the one the cache was made with."""
    if name not in cache.teachers:
        cache.add_teacher(runner.info)
        return
    stored, given = cache.teacher(name).fingerprint, runner.info.fingerprint
    for field in sorted({*stored, *given}):
        if stored.get(field) != given.get(field):
            raise CacheMismatch(
                f"{cache.location} holds another teacher {name!r}: {field} is "
                f"{stored.get(field)!r} there, {given.get(field)!r} here. Give this one another "
                "name (NAME=SOURCE:MODEL), or extract into another cache."
            )


def _refuse_twice(given: Sequence[str]) -> None:
    for name, count in Counter(given).items():
        if count > 1:
            raise UsageError(f"two teachers are named {name!r}; name one with NAME=SOURCE:MODEL.")


def _keep_out_of_the_way(files: Files) -> None:
    """A folder with other things in it does not become a cache."""
    ours = {"index", "teachers", "pixels", "commits", names.LOCK}
    if others := set(files.names_in("")) - ours:
        raise UsageError(
            f"{files.location} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )
