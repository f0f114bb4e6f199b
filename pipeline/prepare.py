"""What must be there before shards can be extracted: the cache, its rows, its teachers.

This changes the structure of a cache, so it is done under the lock of everything: by whichever
process gets it first when there are several. The others wait and find it done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.codes import FittedCodec, coded_teacher
from phistill.cache.upkeep.append import add_segment
from phistill.cache.upkeep.verify import discard, verify
from phistill.errors import LockHeld, OutOfTime, UsageError
from phistill.stats.compacting import KIND

from .add_views import add_views, missing_views
from .codes.pilot import fit_to_pilot, require_same_codes
from .decode.views import View
from .images.listings import listing
from .index import build_index
from .request import Request
from .runners import ANOTHER_NAME, requested_runners
from .teachers.runner import TeacherRunner
from .teachers.same_teacher import require_equal

log = logging.getLogger(__name__)

PREPARE_LIMIT_S = 7200.0
"""A teacher's weights are downloaded, a large source is listed and pilots are run within this."""
LOOK_LIMIT_S = 30.0
"""A loaded machine or an object store takes seconds to open a cache."""
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was found while preparing."""

    num_repaired: int = 0
    """Shards that were damaged and are to be extracted again."""
    num_new_images: int = 0
    """Images of the source that the cache does not have."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies beside the images, by kind, where they were listed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A cache whose shards can be extracted."""

    cache: Cache
    runners: dict[str, TeacherRunner]
    """Those that were built so far."""
    compared: set[str] = field(default_factory=set)
    """Teachers that were found to be the same in this environment."""
    report: PrepareReport = PrepareReport()


def first_runners(request: Request) -> dict[str, TeacherRunner]:
    """The teachers of a cache that does not exist: one that cannot be built leaves no folder."""
    return {} if store.exists(request.files) else requested_runners(request, None)


def prepare(request: Request, built: Mapping[str, TeacherRunner] | None = None) -> Prepared:
    """Make or change the cache as asked for. The caller holds everything; ``built`` are the
    teachers of ``first_runners``, used if the cache still does not exist.

    What the cache has refuses a request before rows are added, and pilots refuse it before teachers
    are."""
    stored = request.open()
    runners = dict(built) if built and stored is None else requested_runners(request, stored)
    if stored is not None:
        _require_same(stored, request, runners)
    cache = stored or _create(request, runners.values())
    cache.files.sweep()
    num_repaired = _repair(cache) if request.options.repair else 0
    if request.options.add_views and (views := missing_views(cache, request.settings.views)):
        add_views(cache, views, request.records, request.source)
    num_new = 0 if stored is None else _append(cache, request)
    if stored is not None and not request.options.append:
        for option, file in (
            ("--labels", request.options.labels_file),
            ("--holdout FILE", request.options.holdout_file),
        ):
            if file is not None:
                log.info(f"{option} is for images that are added; those of the cache keep theirs.")
    new = {name: runner for name, runner in runners.items() if name not in cache.teachers}
    # Of all rows: where there were few, the pilot is of those that were added.
    codecs = {name: _codec(cache, request, runner) for name, runner in new.items()}
    for name, runner in new.items():
        if (fitted := codecs[name]) is None:
            cache.add_teacher(runner.info)
        else:
            cache.add_teacher(coded_teacher(runner.info, {KIND: fitted}), {KIND: fitted.codec})
    return Prepared(
        cache, runners, report=PrepareReport(num_repaired, num_new, dict(request.source.left_out))
    )


def _require_same(cache: Cache, request: Request, runners: Mapping[str, TeacherRunner]) -> None:
    """CacheMismatch where a teacher of the cache is another here, or is stored otherwise."""
    for name, runner in runners.items():
        if name in cache.teachers:
            require_equal(cache, runner.info, ANOTHER_NAME)
            if request.options.codes is not None:
                require_same_codes(cache, name, request.options.codes)


def _codec(cache: Cache, request: Request, runner: TeacherRunner) -> FittedCodec | None:
    """Of a new teacher's patches, where they are to be coded."""
    options = request.options
    if options.codes is None:
        return None
    return fit_to_pilot(
        cache,
        request.source,
        runner,
        options.codes,
        num_workers=options.num_workers,
        mode=options.decode,
    )


def _append(cache: Cache, request: Request) -> int:
    """Images of the source that the cache does not have, after those were added that are asked for.

    They are looked for where rows are to be added, or where nothing is left to do; a run that goes
    on has no need to list the images again.
    """
    known = all(spec.name in cache.teachers for spec in request.specs)
    is_complete = known and not any(map(cache.missing_shards, cache.owners))
    if not request.must_list and (request.source.slow_to_list or not is_complete):
        return 0
    new = new_records(cache, request.records)
    if not new.num_rows or not request.options.append:
        return new.num_rows
    index = build_index(
        new,
        num_views=len(cache.info.views),
        seed=cache.info.seed,
        start=cache.info.next_row,
        source=request.source,
    )
    num_known = request.records.num_rows - new.num_rows
    add_segment(cache, index, sources=[listing(request.source, new.num_rows, num_known)])
    return 0


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
    waited_for = ""
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
            if who and who != waited_for:
                log.info(f"waiting for {who} to prepare the cache, or to let go of it.")
                waited_for = who
        time.sleep(POLL_S)
    return Prepared(cache, {})


def if_prepared(request: Request) -> Cache | None:
    """The cache when its shards can be extracted as they are."""
    cache = request.open()
    if cache is None or any(spec.name not in cache.teachers for spec in request.specs):
        return None
    if request.options.codes is not None:
        for spec in request.specs:
            require_same_codes(cache, spec.name, request.options.codes)
    if request.options.append and new_records(cache, request.records).num_rows:
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
                holders = cache.files.holders()
                looks = not holders or any(holder.shards is None for holder in holders)
                limit_s = max(patience_s, LOOK_LIMIT_S) if looks else patience_s
                if time.monotonic() - started > limit_s:
                    raise
            time.sleep(POLL_S)
        yield


def _create(request: Request, runners: Collection[TeacherRunner]) -> Cache:
    settings, records = request.settings, request.records
    info = settings.new_cache(
        num_rows=records.num_rows * len(settings.views or (View(),)),
        input_pixels=max(height * width for height, width in (r.rendering.size for r in runners)),
        device=request.device.type,
    )
    info = replace(info, sources=(listing(request.source, records.num_rows),))
    index = build_index(records, num_views=len(info.views), seed=info.seed, source=request.source)
    return store.create(request.files, info, index)


def new_records(cache: Cache, records: pa.Table) -> pa.Table:
    """Those of the records that the cache does not have."""
    known: Any = cache.index()["id"]
    return records.filter(pc.invert(pc.is_in(records["id"], value_set=known)))
