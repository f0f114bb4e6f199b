"""The verb ``train``, and the loop: a list of events around ``TrainState.train_step``."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.cache.storage.publish import PublishError
from phistill.cache.upkeep.copying import CopyProgress
from phistill.compute.allocator import keeping_freed_memory
from phistill.compute.precision import full_float32, same_bits
from phistill.compute.ranks import joined
from phistill.compute.signals import Interrupted, StopRequest
from phistill.errors import PhistillError, StoreError, UsageError

from . import checkpoint
from .config import TrainConfig
from .data.batch import Batch
from .data.loader import Loader
from .data.near import stage_caches
from .data.source import Source, Transform, open_source
from .progress import ProgressCallback, RunResult
from .resolve import require_agreement, resolve_run
from .run import Run
from .run_folder import is_finished


def train(
    cache: CacheArgument,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    stage: Path | str | None = None,
    extend: bool = False,
    progress: ProgressCallback | None = None,
    stage_progress: CopyProgress | None = None,
) -> RunResult:
    """Train a student from a cache into the run folder ``out``, or go on where it stopped.

    Needs the cache alone: no teacher, no images. A sequence of caches is drawn from with
    ``config.cache_weights``. ``stage`` is a folder on a near disk that the rows are copied to first
    and read from; it changes nothing else. With ``extend`` a run that is there may get more steps
    (``num_steps``, ``epochs``): the learning rate then follows the schedule of the new length from
    where the run stands. Raises UsageError for settings that do not fit the
    cache, RunMismatch when ``out`` holds another run, Diverged on a value that is not finite, and
    Interrupted, with everything saved, on Ctrl-C or SIGTERM.
    """
    failure, config = None, config or TrainConfig()
    try:
        near = caches = open_caches(cache)
        if stage is not None and (extend or not is_finished(Path(out))):
            # Before the ranks meet: one of them may copy for longer than the others would wait.
            near = stage_caches(caches, stage, config, progress=stage_progress)
    except PhistillError as error:
        failure = error  # told to the other ranks, who would wait for this one
    with joined(config.device) as ranks, contextlib.ExitStack() as stack:
        with ranks.all_or_none():
            if failure is not None:
                raise failure
            resolved = resolve_run(caches, config, ranks.device)
        require_agreement(resolved, ranks)
        if config.batch_size < ranks.world:
            raise UsageError(
                f"batch_size={config.batch_size} has no row for each of {ranks.world} processes. "
                f"Take batch_size={ranks.world} or more, or fewer processes."
            )
        run = Run(Path(out), resolved, ranks, progress, extend=extend)
        stack.callback(run.close)
        resolved, state = run.resolved, run.state
        num_heldout = resolved.num_heldout
        if ranks.is_first and not num_heldout:
            warnings.warn(
                f"{caches.location} holds no image out: what the student learns can only be "
                "measured on images it has seen (evaluate --split train). Extract with --holdout "
                "0.05 to measure it on others.",
                stacklevel=2,
            )
        begun, wait_s, in_memory = time.perf_counter(), 0.0, False
        if not state.is_finished:
            source = source_of([run], near)
            in_memory = source.is_resident
            wait_s = train_runs([run], source)
            if run.diverged is not None:
                raise run.diverged
        seconds = time.perf_counter() - begun
        num_rows = (state.done - run.first_step) * config.batch_size
        return RunResult(
            path=run.path,
            num_steps=state.num_steps,
            resumed_from=run.first_step,
            num_rows=resolved.plan.num_images,
            losses=run.losses,
            seconds=seconds,
            rows_per_s=num_rows / seconds if num_rows else 0.0,
            wait_share=wait_s / seconds if num_rows else 0.0,
            num_heldout=num_heldout,
            in_memory=in_memory,
            precision=resolved.precision,
            checkpoint=checkpoint.path_of(run.path, state.done),
        )


def source_of(runs: Sequence[Run], caches: JoinedCaches) -> Source:
    """Where runs that share their rows read them: everything that any of them learns.

    ``caches`` are the runs' own or copies with the same rows.
    """
    targets = {target: None for run in runs for target in run.resolved.targets}
    first = runs[0]
    transforms: Mapping[str, Transform] = {}
    # Several runs that share a batch normalise it once for all of them, and a GPU in no time.
    if len(runs) == 1 and first.ranks.device.type == "cpu":
        transforms = first.state.objective.transforms_by_target()
    with full_float32():
        return open_source(
            caches,
            tuple(targets),
            first.resolved.plan,
            world=first.ranks.world,
            transforms=transforms,
        )


def train_runs(runs: Sequence[Run], source: Source) -> float:
    """Train runs that share their rows to the end; returns the seconds spent waiting for data.

    A run that is ahead of the others, because it was saved later, sits out the steps it has done,
    and one that diverges those that are left: it says so in ``diverged``.
    """
    first, ranks = runs[0].resolved, runs[0].ranks
    # Taking rows out of memory is cheap on a CPU; beside a GPU a thread does it meanwhile.
    in_loop = source.is_resident and ranks.device.type != "cuda"
    loader = Loader(
        source,
        first.plan,
        source.targets,
        start=min(run.first_step for run in runs),
        stop=first.num_steps,
        rank=ranks.rank,
        world=ranks.world,
        workers=0 if in_loop else first.config.loader_workers,
        read_ahead=first.config.read_ahead,
        device=ranks.device,
    )
    runs = _alike_together(runs)
    held = same_bits(any(run.config.deterministic for run in runs))
    for run in runs:
        run.start_clock()
    with keeping_freed_memory(ranks.device), full_float32(), held, loader, StopRequest() as stop:
        writing = runs[0]
        for batch in _read(loader, runs):
            batch = replace(batch, shared={}) if len(runs) > 1 else batch
            for run in runs:
                if run.state.done > batch.step or run.diverged is not None:
                    continue
                run.train_step(batch)
                run.log_if_due(loader.wait_s)
                with _saving_when_data_fails(runs):
                    run.validate_if_due(source)
                if run.save_if_due():
                    if writing is not run:  # copies of two states at once, not of all
                        writing.wait_until_saved()
                    writing = run
            if all(run.diverged is not None for run in runs):
                break
            _stop_if_asked(stop, runs)
        for run in runs:
            run.wait_until_saved()
    return loader.wait_s


def _alike_together(runs: Sequence[Run]) -> list[Run]:
    """Runs that normalise their targets alike follow each other, so that it is done once."""
    groups: dict[bytes, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.state.objective.digest(), []).append(run)
    return [run for group in groups.values() for run in group]


def _read(batches: Iterable[Batch], runs: Sequence[Run]) -> Iterator[Batch]:
    with _saving_when_data_fails(runs):
        yield from batches


@contextlib.contextmanager
def _saving_when_data_fails(runs: Sequence[Run]) -> Iterator[None]:
    """Where the cache cannot be read, keep what was learnt up to there and say so.

    Several ranks save together, which they cannot when one of them has failed.
    """
    try:
        yield
    except PublishError:
        raise  # the run's own folder is full; the cache is whole
    except (PhistillError, OSError) as error:
        text = str(error)
        if not isinstance(error, PhistillError):
            location = runs[0].resolved.caches.location
            text = f"{location} cannot be read any more ({error.filename}: {error.strerror})."
        learnt = [run for run in runs if run.state.done > run.first_step]
        if learnt and runs[0].ranks.world == 1:
            for run in learnt:
                run.save()
                run.wait_until_saved()
            text += (
                f" Training is saved after step {learnt[0].state.done}: mend the cache and run "
                "the same command again."
            )
        if not isinstance(error, PhistillError):
            raise StoreError(text) from error
        if isinstance(error, OSError):
            error.strerror = text
        else:
            error.args = (text,)
        raise


def _stop_if_asked(stop: StopRequest, runs: Sequence[Run]) -> None:
    """All ranks stop after the same step, whichever of them was signalled."""
    number = runs[0].ranks.largest(stop.number)
    if number and not all(run.state.is_finished for run in runs):
        for run in runs:
            run.save()
            run.wait_until_saved()
        raise Interrupted(
            f"stopped after step {runs[0].state.done}; everything is saved. "
            "Run the same command again to go on from there.",
            number,
        )
