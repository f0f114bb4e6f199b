"""The training loop, and the verb ``train``."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from phistill.cache.upkeep.copying import CopyProgress
from phistill.compute.allocator import keeping_freed_memory
from phistill.compute.precision import full_float32
from phistill.compute.ranks import Ranks, joined
from phistill.compute.signals import Interrupted, StopRequest
from phistill.errors import PhistillError, StoreError

from .checkpoint import FOLDER
from .config import TrainConfig
from .data.loader import Batch, Loader, Source
from .data.near import is_finished, stage_caches
from .evaluation import CacheArgument, open_cache
from .resolve import Lesson, make_source, prepare
from .run import ProgressCallback, Run, RunResult
from .targets import Target


def train(
    cache: CacheArgument,
    out: Path | str,
    config: TrainConfig,
    *,
    stage: Path | str | None = None,
    progress: ProgressCallback | None = None,
    stage_progress: CopyProgress | None = None,
) -> RunResult:
    """Train a student from a cache into the run folder ``out``, or go on where it stopped.

    Needs the cache alone: no teacher, no images. A sequence of caches is drawn from with
    ``config.cache_weights``. ``stage`` is a folder on a near disk that the rows are copied to first
    and read from; it changes nothing else. Raises UsageError for settings that do not fit the
    cache, RunMismatch when ``out`` holds another run, Diverged on a value that is not finite, and
    Interrupted, with everything saved, on Ctrl-C or SIGTERM.
    """
    opened = open_cache(cache)
    near = opened
    if stage is not None and not is_finished(Path(out)):
        # Before the ranks meet: one of them may copy for longer than the others would wait.
        near = stage_caches(opened, stage, config, progress=stage_progress)
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(joined(config.device))
        lesson = prepare(opened, config, group.device)
        run = Run(Path(out), lesson, group, progress)
        stack.callback(run.close)
        _warn_when_nothing_is_held_out(lesson, group)
        begun, wait_s, in_memory = time.perf_counter(), 0.0, False
        if not run.is_finished:
            source = make_source(run.lesson, group, near)
            in_memory = source.is_resident
            wait_s = run_steps([run], source, group, run.lesson.targets)
        seconds = time.perf_counter() - begun
        num_rows = (run.trainee.done - run.first_step) * config.batch_size
        return RunResult(
            path=run.path,
            num_steps=run.lesson.plan.num_steps,
            resumed_from=run.first_step,
            num_rows=run.lesson.plan.num_images,
            losses=run.losses,
            seconds=seconds,
            rows_per_s=num_rows / seconds if num_rows else 0.0,
            wait_share=wait_s / seconds if num_rows else 0.0,
            num_heldout=lesson.num_heldout,
            in_memory=in_memory,
            precision=run.lesson.precision,
            checkpoint=run.path / FOLDER / f"{run.trainee.done:08d}.safetensors",
        )


def _warn_when_nothing_is_held_out(lesson: Lesson, group: Ranks) -> None:
    if group.is_first and not lesson.num_heldout:
        warnings.warn(
            f"{lesson.cache.location} holds no image out: what the student learns can only be "
            "measured on images it has seen (evaluate --split train). Extract with --holdout 0.05 "
            "to measure it on others.",
            stacklevel=3,
        )


def run_steps(
    runs: Sequence[Run], source: Source, group: Ranks, targets: Sequence[Target]
) -> float:
    """Train runs that share their rows to the end; returns the seconds spent waiting for data.

    ``targets`` are those that any of the runs learns. A run that is ahead of the others, because
    it was saved later, sits out the steps it has done.
    """
    lesson = runs[0].lesson
    # Taking rows out of memory is cheap on a CPU; beside a GPU a thread does it meanwhile.
    in_loop = source.is_resident and group.device.type != "cuda"
    loader = Loader(
        source,
        lesson.plan,
        targets,
        start=min(run.first_step for run in runs),
        stop=lesson.plan.num_steps,
        rank=group.rank,
        world=group.world,
        workers=0 if in_loop else lesson.config.loader_workers,
        read_ahead=lesson.config.read_ahead,
        device=group.device,
    )
    runs = _alike_together(runs)
    with keeping_freed_memory(group.device), full_float32(), loader, StopRequest() as stop:
        for batch in _read(loader, runs, group):
            batch = replace(batch, shared={}) if len(runs) > 1 else batch
            for run in runs:
                if run.trainee.done > batch.step:
                    continue
                values = run.learn(batch)
                run.report(values, loader.wait_s)
                with _saving_when_data_fails(runs, group):
                    run.validate(source)
                run.keep()
            _stop_if_asked(stop, runs, group)
    return loader.wait_s


def _read(batches: Iterable[Batch], runs: Sequence[Run], group: Ranks) -> Iterator[Batch]:
    with _saving_when_data_fails(runs, group):
        yield from batches


@contextlib.contextmanager
def _saving_when_data_fails(runs: Sequence[Run], group: Ranks) -> Iterator[None]:
    """Where the cache cannot be read, keep what was learnt up to there and say so.

    Several ranks save together, which they cannot when one of them has failed.
    """
    try:
        yield
    except (PhistillError, OSError) as error:
        what = str(error)
        if not isinstance(error, PhistillError):
            location = runs[0].lesson.cache.location
            what = f"{location} cannot be read any more ({error.filename}: {error.strerror})."
        learnt = [run for run in runs if run.trainee.done > run.first_step]
        if group.world == 1 and learnt:
            for run in learnt:
                run.save()
            what += (
                f" Training is saved after step {learnt[0].trainee.done}: mend the cache and run "
                "the same command again."
            )
        if not isinstance(error, PhistillError):
            raise StoreError(what) from error
        if isinstance(error, OSError):
            error.strerror = what
        else:
            error.args = (what,)
        raise


def _alike_together(runs: Sequence[Run]) -> list[Run]:
    """Runs that normalise their targets alike follow each other, so that it is done once."""
    groups: dict[bytes, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.trainee.objective.digest(), []).append(run)
    return [run for group in groups.values() for run in group]


def _stop_if_asked(stop: StopRequest, runs: Sequence[Run], group: Ranks) -> None:
    """All ranks stop after the same step, whichever of them was signalled."""
    number = stop.number
    if group.world > 1:
        asked = torch.tensor([number], dtype=torch.int64, device=group.device)
        number = int(group.total(asked).clamp(max=15))
    if number and not all(run.is_finished for run in runs):
        for run in runs:
            run.save()
        raise Interrupted(
            f"stopped after step {runs[0].trainee.done}; everything is saved. "
            "Run the same command again to go on from there.",
            number,
        )
