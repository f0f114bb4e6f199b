"""What must be there before shards can be extracted: the cache, its rows, its teachers.

This changes the structure of a cache, so it is done under the lock of everything: by whichever
process gets it first when there are several. The others wait and find it done.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from phistill import cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.cache.format import names
from phistill.cache.storage.files import Files
from phistill.cache.storage.publish import TEMPORARY_SUFFIX
from phistill.cache.upkeep import growth
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import LockHeld, OutOfTime, UsageError

from .add_views import add_views, missing_views
from .decode.views import View
from .images.annotations import hold_out, label
from .images.source import ImageRecord, ImageSource
from .index import build_index
from .options import AUTO, ExtractOptions
from .same_teacher import add_or_require, require_equal
from .settings import CacheSettings
from .teachers.batch_size import choose_batch_sizes
from .teachers.runner import TeacherRunner
from .teachers.spec import TeacherSpec

if TYPE_CHECKING:
    import torch

PREPARE_LIMIT_S = 1800.0
"""A teacher's weights are downloaded and a large source is listed within this."""
LOOK_LIMIT_S = 30.0
"""A loaded machine or an object store takes seconds to open a cache."""
POLL_S = 0.25
ANOTHER_NAME = "Give this one another name (NAME=SOURCE:MODEL), or extract into another cache."


def silent(text: str) -> None:
    """Where nobody wants to be told."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be extracted; neither images nor teachers were looked at yet."""

    source: ImageSource
    files: Files
    specs: tuple[TeacherSpec, ...]
    settings: CacheSettings
    options: ExtractOptions
    device: torch.device
    on_notice: Callable[[str], None] = silent
    """Told what is waited for, measured or not used."""

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that were asked for; none means those of the cache."""
        return [spec.name for spec in self.specs]

    @property
    def must_list(self) -> bool:
        """Whether the images have to be listed: not those of a source from afar once the cache has
        them, because listing reads everything."""
        return not self.source.slow_to_list or self.options.append or not store.exists(self.files)

    @cached_property
    def records(self) -> list[ImageRecord]:
        """The images of the source, some of them held out by name."""
        records = self.source.records()
        if self.options.holdout_file is not None:
            records = hold_out(records, self.options.holdout_file)
        if self.options.labels_file is not None:
            records, missing = label(records, self.options.labels_file)
            if missing:
                self.on_notice(
                    f"{missing:,} of {len(records):,} images have no label in "
                    f"{self.options.labels_file}."
                )
        return records

    def open(self) -> Cache | None:
        """The cache, or None when it is not made yet; CacheMismatch when it has other settings."""
        if not store.exists(self.files):
            return None
        cache = store.open(self.files)
        settings = self.settings
        if self.options.add_views:
            missing_views(cache, settings.views)
            settings = dataclasses.replace(settings, views=None)
        settings.check(cache.info, cache.location)
        return cache


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found while preparing."""

    num_repaired: int = 0
    """Shards that were damaged and are to be extracted again."""
    num_new_images: int = 0
    """Images of the source that the cache does not have."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A cache whose shards can be extracted."""

    cache: Cache
    runners: dict[str, TeacherRunner]
    """Those that were built so far."""
    compared: set[str] = dataclasses.field(default_factory=set)
    """Teachers that were found to be the same in this environment."""
    facts: Facts = Facts()


def first_runners(request: Request) -> dict[str, TeacherRunner]:
    """The teachers of a cache that does not exist: one that cannot be built leaves no folder."""
    return {} if store.exists(request.files) else _runners(request, None)


def _runners(request: Request, stored: Cache | None) -> dict[str, TeacherRunner]:
    runners = {
        spec.name: _runner(spec, stored, request.options, request.device, request.on_notice)
        for spec in request.specs
    }
    if request.options.rows_per_forward == AUTO:
        known = () if stored is None else stored.teachers
        new_ones = {name: found for name, found in runners.items() if name not in known}
        choose_batch_sizes(new_ones, request.on_notice)
    return runners


def prepare(request: Request, built: Mapping[str, TeacherRunner] | None = None) -> Prepared:
    """Make or change the cache as asked for. The caller holds everything; ``built`` are the
    teachers of ``first_runners``, used if the cache still does not exist."""
    stored, listed = request.open(), request.must_list
    runners = dict(built) if built and stored is None else _runners(request, stored)
    cache = stored or _create(request, [runner.info for runner in runners.values()])
    cache.files.sweep()
    num_repaired = _repair(cache) if request.options.repair else 0
    if request.options.add_views and (views := missing_views(cache, request.settings.views)):
        add_views(cache, views, request.records)
    new = _new_records(cache, request.records) if listed else []
    if new and request.options.append:
        index = build_index(
            new,
            num_views=len(cache.info.views),
            seed=cache.info.seed,
            start=growth.next_row(cache.info),
            window=request.source.window,
        )
        growth.add_segment(cache, index)
        new = []
    if stored is not None and request.options.labels_file and not request.options.append:
        request.on_notice("--labels is for images that are added; those of the cache keep theirs.")
    for runner in runners.values():
        add_or_require(cache, runner.info, ANOTHER_NAME)
    return Prepared(cache, runners, facts=Facts(num_repaired, len(new)))


def _repair(cache: Cache) -> int:
    """Make damaged shards missing, unless nobody here can make one of them again."""
    report = verify(cache)
    owners = {finding.owner for finding in report.damaged if finding.shard is not None}
    imported = [name for name in cache.teachers if cache.teacher(name).is_imported]
    if lost := [name for name in imported if name in owners]:
        raise UsageError(
            f"{', '.join(lost)} of {cache.location} is damaged, and was imported. Mend that first: "
            f"phistill import-features FEATURES --cache {cache.location} --repair (or "
            "remove-teacher). Nothing was changed."
        )
    return discard(cache, report)


def prepare_once(request: Request, started: float) -> Prepared:
    """``prepare`` where several processes may come at once: one does it, the others wait.

    ``started`` is when the run began (``time.monotonic``). Raises LockHeld when whoever writes has
    not finished within PREPARE_LIMIT_S, OutOfTime when the run's own limit comes before.
    """
    deadline = time.monotonic() + PREPARE_LIMIT_S
    limit_s = request.options.time_limit_s
    told = ""
    while (cache := if_prepared(request)) is None:
        try:
            with request.files.writing():
                if if_prepared(request) is None:
                    return prepare(request)
        except LockHeld as error:
            if time.monotonic() > deadline:
                raise
            who = " and ".join(map(str, request.files.holders()))
            if limit_s is not None and time.monotonic() - started > limit_s:
                raise OutOfTime(
                    f"The time limit is reached while {who or 'another process'} prepares "
                    f"{request.files.location}; run the same command again to go on."
                ) from error
            if who and who != told:
                request.on_notice(f"waiting for {who} to prepare the cache, or to let go of it.")
                told = who
        time.sleep(POLL_S)
    return Prepared(cache, {})


def if_prepared(request: Request) -> Cache | None:
    """The cache when its shards can be extracted as they are."""
    cache = request.open()
    if cache is None or any(spec.name not in cache.teachers for spec in request.specs):
        return None
    if request.options.append and _new_records(cache, request.records):
        return None
    if request.options.add_views and missing_views(cache, request.settings.views):
        return None
    return cache


@contextmanager
def holding(cache: Cache, shards: Sequence[int], patience_s: float) -> Iterator[None]:
    """Hold shards for writing; LockHeld when another writer has not let go in time.

    Who has everything may only be looking whether something has to be prepared, so for that one
    there is LOOK_LIMIT_S at least.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(cache.writing(shards))
                break
            except LockHeld:
                found = cache.files.holders()
                looks = not found or any(holder.shards is None for holder in found)
                limit_s = max(patience_s, LOOK_LIMIT_S) if looks else patience_s
                if time.monotonic() - started > limit_s:
                    raise
            time.sleep(POLL_S)
        yield


def build_runners(
    cache: Cache,
    teachers: Iterable[str],
    *,
    specs: Sequence[TeacherSpec],
    options: ExtractOptions,
    device: torch.device,
    on_notice: Callable[[str], None] = silent,
) -> dict[str, TeacherRunner]:
    """Runners of teachers that the cache has, by ``specs`` or else by what the cache tells.

    Raises CacheMismatch, naming the field, when one is not the teacher the cache was made with.
    """
    given = {spec.name: spec for spec in specs}
    runners = {}
    for name in teachers:
        if name not in given and cache.teacher(name).is_imported:
            raise UsageError(
                f"teacher {name!r} of {cache.location} was imported and cannot be run. Import its "
                f"features of the rows it misses: phistill import-features FEATURES --cache "
                f"{cache.location}; or name the teachers to extract with --teacher."
            )
        spec = given.get(name) or TeacherSpec.parse(f"{name}={cache.teacher(name).spec}")
        runners[name] = _runner(spec, cache, options, device, on_notice)
        require_equal(cache, runners[name].info, ANOTHER_NAME)
    return runners


def keep_out_of_the_way(files: Files) -> None:
    """A folder with other things in it does not become a cache."""
    # Another worker may be making the cache at this moment, or was killed while it did.
    root = {names.ROOT, names.ROOT + TEMPORARY_SUFFIX}
    ours = {"index", "teachers", "pixels", "commits", *names.WRITERS, *root}
    if others := set(files.names_in("")) - ours:
        raise UsageError(
            f"{files.location} exists and holds other things ({', '.join(sorted(others)[:3])}). "
            "Choose a path that does not exist yet."
        )


def _runner(
    spec: TeacherSpec,
    cache: Cache | None,
    options: ExtractOptions,
    device: torch.device,
    on_notice: Callable[[str], None],
) -> TeacherRunner:
    """The teacher of a spec; one that the cache has keeps its arithmetic and its batches."""
    autocast = options.autocast
    asked = options.rows_per_forward
    rows = None if isinstance(asked, str) else asked
    if cache is not None and spec.name in cache.teachers:
        stored = cache.teacher(spec.name)
        autocast = autocast or stored.identity.get("autocast")
        if rows not in (None, stored.rows_per_forward):
            on_notice(
                f"{spec.name} keeps the {stored.rows_per_forward} rows per forward pass that it "
                f"was stored with; --batch-size {rows} is for new teachers."
            )
        rows = stored.rows_per_forward
    return TeacherRunner(
        spec.name,
        spec.text,
        spec.build(),
        device,
        autocast=autocast,
        rows_per_forward=rows,
        **options.kernels,
    )


def _create(request: Request, teachers: Sequence[TeacherInfo]) -> Cache:
    settings, records = request.settings, request.records
    side = 224 if settings.pixel_size is None else settings.pixel_size
    info = settings.new_cache(
        num_rows=len(records) * len(settings.views or (View(),)),
        max_row_bytes=max(side * side * 3, *(teacher.row_bytes for teacher in teachers)),
    )
    index = build_index(
        records, num_views=len(info.views), seed=info.seed, window=request.source.window
    )
    return store.create(request.files, info, index)


def _new_records(cache: Cache, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    known = set(cache.index()["id"].to_pylist())
    return [record for record in records if record.id not in known]
