"""Teachers built to run: one that a cache has keeps its arithmetic and its batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from phistill.cache import Cache
from phistill.compute.devices import choose_device
from phistill.errors import UsageError

from .request import Request
from .settings import AUTO, ExtractOptions
from .teachers.batch_size import choose_batch_sizes
from .teachers.runner import TeacherRunner
from .teachers.same_teacher import require_equal
from .teachers.spec import TeacherSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ANOTHER_NAME = "Give this one another name (NAME=SOURCE:MODEL), or extract into another cache."


def requested_runners(request: Request, stored: Cache | None) -> dict[str, TeacherRunner]:
    runners = {
        spec.name: _runner(spec, stored, request.options, request.device) for spec in request.specs
    }
    if request.options.rows_per_forward == AUTO:
        known = () if stored is None else stored.teachers
        new_ones = {name: runner for name, runner in runners.items() if name not in known}
        choose_batch_sizes(new_ones)
    return runners


def build_runners(
    cache: Cache,
    teachers: Iterable[str],
    *,
    specs: Sequence[TeacherSpec],
    options: ExtractOptions,
    device: torch.device,
) -> dict[str, TeacherRunner]:
    """Runners of teachers that the cache has, by ``specs`` or else by what the cache tells.

    Raises CacheMismatch, naming the field, when one is not the teacher the cache was made with.
    """
    by_name = {spec.name: spec for spec in specs}
    runners = {}
    for name in teachers:
        if name not in by_name and cache.teacher(name).is_imported:
            raise UsageError(
                f"teacher {name!r} of {cache.location} was imported and cannot be run. Import its "
                f"features of the rows it misses: phistill import-features FEATURES --cache "
                f"{cache.location}; or name the teachers to extract with --teacher."
            )
        spec = by_name.get(name) or TeacherSpec.parse(f"{name}={cache.teacher(name).spec}")
        runners[name] = _runner(spec, cache, options, device)
        require_equal(cache, runners[name].info, ANOTHER_NAME)
    return runners


def stored_runner(cache: Cache, name: str, device: str = "auto") -> TeacherRunner:
    """A teacher of the cache, built again from its spec; CacheMismatch when it is another one."""
    options, target = ExtractOptions(), choose_device(device)
    return build_runners(cache, [name], specs=(), options=options, device=target)[name]


def _runner(
    spec: TeacherSpec,
    cache: Cache | None,
    options: ExtractOptions,
    device: torch.device,
) -> TeacherRunner:
    """The teacher of a spec; one that the cache has keeps its arithmetic and its batches."""
    autocast = options.autocast
    wanted = options.rows_per_forward
    rows = None if isinstance(wanted, str) else wanted
    if cache is not None and spec.name in cache.teachers:
        stored = cache.teacher(spec.name)
        autocast = autocast or stored.identity.get("autocast")
        if rows not in (None, stored.rows_per_forward):
            log.info(
                f"{spec.name} keeps the {stored.rows_per_forward} rows per forward pass that it "
                f"was stored with; --batch-size {rows} is for new teachers."
            )
        rows = stored.rows_per_forward
    runner = TeacherRunner(
        spec.name,
        spec.text,
        spec.build(),
        device,
        autocast=autocast,
        rows_per_forward=rows,
        **options.kernels,
    )
    info = runner.info
    log.debug(
        "%s: %s on %s, %d rows per forward pass",
        *(info.name, info.identity["autocast"], device, info.rows_per_forward),
    )
    if runner.unseen:
        log.info(f"{spec.name} does not look at the {' and '.join(runner.unseen)} of its input.")
    if runner.padded_windows:
        log.info(f"{spec.name} pads its maps for windows: {runner.padded_windows}.")
    return runner
