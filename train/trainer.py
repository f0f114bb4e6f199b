"""The verb ``train``, and the loop: a list of events around ``TrainState.train_step``."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.cache.upkeep.copying import CopyProgress
from phistill.compute.allocator import keeping_freed_memory
from phistill.compute.precision import full_float32, same_bits
from phistill.compute.ranks import Ranks, joined
from phistill.compute.signals import Interrupted, StopRequest
from phistill.errors import PhistillError, StoreError, UsageError

from . import checkpoint
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data.batch import Batch
from .data.loader import Loader
from .data.near import stage_caches
from .data.source import Source, open_source
from .evaluation import EvalRow, mean_score, measure
from .progress import Progress, ProgressCallback, RunResult
from .resolve import ResolvedRun, resolve_run
from .run_folder import RunFolder, is_finished, only_trainer, refuse_another_run
from .state import NotFinite, StepValues, TrainState
from .student.predict import TrainedStudent


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
    caches = open_caches(cache)
    near = caches
    if stage is not None and not is_finished(Path(out)):
        # Before the ranks meet: one of them may copy for longer than the others would wait.
        near = stage_caches(caches, stage, config, progress=stage_progress)
    with joined(config.device) as ranks, contextlib.ExitStack() as stack:
        if config.batch_size < ranks.world:
            raise UsageError(
                f"batch_size={config.batch_size} has no row for each of {ranks.world} processes. "
                f"Take batch_size={ranks.world} or more, or fewer processes."
            )
        run = Run(Path(out), resolve_run(caches, config, ranks.device), ranks, progress)
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
    return open_source(caches, tuple(targets), runs[0].resolved.plan, world=runs[0].ranks.world)


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
        for batch in _read(loader, runs):
            batch = replace(batch, shared={}) if len(runs) > 1 else batch
            for run in runs:
                if run.state.done > batch.step or run.diverged is not None:
                    continue
                try:
                    values = run.state.train_step(batch)
                except NotFinite as error:
                    run.note_divergence(error)
                    continue
                run.log_if_due(values, loader.wait_s)
                with _saving_when_data_fails(runs):
                    run.validate_if_due(source)
                run.save_if_due()
            if all(run.diverged is not None for run in runs):
                break
            _stop_if_asked(stop, runs)
    return loader.wait_s


class Run:
    """A run folder and the state that is trained into it; all events of a run are its methods."""

    def __init__(
        self,
        path: Path,
        resolved: ResolvedRun,
        ranks: Ranks,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.path, self.resolved, self.ranks, self.progress = path, resolved, ranks, progress
        self.config = resolved.config
        self.losses: dict[str, float] = {}
        self.score: float | None = None
        """Of the last validation, while no step has followed it; lower is better."""
        self.diverged: NotFinite | None = None
        """Why no further step is possible."""
        self._since = (0.0, 0, 0.0)
        """Time, step and seconds waited at the last report."""
        # What is refused leaves no folder behind, so it is looked at before one is locked.
        refuse_another_run(path, resolved)
        new = None if checkpoint.steps(path) else TrainState(resolved, ranks)
        with contextlib.ExitStack() as stack:
            if ranks.is_first:
                stack.enter_context(only_trainer(path))
            refuse_another_run(path, resolved)  # another process may have begun a run meanwhile
            stored = checkpoint.load_latest(path)
            if stored is not None:
                self.state = self._restored(stored)
            else:
                self.state = new or TrainState(resolved, ranks)
            self.first_step = self.state.done
            self._saved = self.first_step if stored is not None else -1
            ranks.barrier()  # every rank has looked at the folder before the first writes into it
            self._folder: RunFolder | None = None
            if ranks.is_first:
                self._folder = RunFolder(path, self.resolved, first_step=self.first_step)
                stack.callback(self._folder.close)
            self._held = stack.pop_all()

    def _restored(self, stored: Checkpoint) -> TrainState:
        facts = stored.facts
        for what, before, now in (
            ("threads", facts["num_threads"], torch.get_num_threads()),
            ("processes", facts["num_ranks"], self.ranks.world),
        ):
            if before != now and self.ranks.is_first:
                warnings.warn(
                    f"{self.path} was trained with {before} {what}, now there are {now}: the run "
                    "goes on with the same rows, but not bit for bit.",
                    stacklevel=2,
                )
        self.resolved = self.resolved.as_stored(facts, stored.tensors)
        self.losses = dict(facts["losses"])
        # A checkpoint brings its weights: going on needs no hub.
        bare = msgspec.structs.replace(self.config, pretrained=False)
        state = TrainState(replace(self.resolved, config=bare), self.ranks)
        state.restore(stored.tensors, facts["state"])
        return state

    def start_clock(self) -> None:
        """Speeds are counted from here."""
        self._since = (time.perf_counter(), self.state.done, 0.0)

    def log_if_due(self, values: StepValues, wait_s: float) -> None:
        """Log the step and tell who watches, every ``log_every`` steps and at the last.

        ``wait_s`` is how long all steps so far have waited for data.
        """
        self.losses, self.score = values.losses, None
        if self._folder is None or (
            values.step % self.config.log_every and not self.state.is_finished
        ):
            return
        now = time.perf_counter()
        begun, step, waited = self._since
        self._since = (now, values.step, wait_s)
        seconds, num_steps = max(now - begun, 1e-9), values.step - step
        progress = Progress(
            step=values.step,
            num_steps=self.state.num_steps,
            losses=values.losses,
            total=values.total,
            lr=values.lr,
            gradient_norm=values.gradient_norm,
            rows_per_s=num_steps * self.config.batch_size / seconds,
            wait_share=(wait_s - waited) / seconds,
            seconds_left=(self.state.num_steps - values.step) * seconds / max(1, num_steps),
        )
        numbers = {k: v for k, v in asdict(values).items() if k != "step" and v != {}}
        speed = {"rows_per_s": progress.rows_per_s, "wait_share": progress.wait_share}
        self._folder.log("train", values.step, numbers | speed)
        if self.progress is not None:
            self.progress(progress)

    def validate_if_due(self, source: Source) -> list[EvalRow]:
        """Held-out rows, every ``validate_every`` steps and at the end; [] at other steps."""
        step, every = self.state.done, self.config.validate_every
        if self._folder is None or not (self.state.is_finished or (every and step % every == 0)):
            return []
        resolved = self.resolved
        if not resolved.heldout:
            return []
        with self.state.averaged() as student:
            trained = TrainedStudent(student, self.config, resolved.normalizers, {})
            trained.to(self.ranks.device)
            lines = [
                line
                for part in resolved.heldout
                for line in measure(
                    trained,
                    source,
                    part.rows[: self.config.validate_rows],
                    resolved.means,
                    label="trained",
                    cache=part.cache,
                )
            ]
        self.score = mean_score(lines)
        figures = {
            line.column: {k: v for k, v in line.to_dict().items() if isinstance(v, float)}
            for line in lines
        }
        self._folder.log("validate", step, {"score": self.score, **figures})
        return lines

    def save_if_due(self) -> None:
        """Save every ``checkpoint_every`` steps and at the end."""
        every = self.config.checkpoint_every
        if self.state.is_finished or (every and self.state.done % every == 0):
            self.save()

    def save(self) -> None:
        """Publish a checkpoint of the state after the last step; on all ranks at once."""
        if self.state.done == self._saved:
            return
        self._saved, tensors = self.state.done, self.state.tensors()
        if self._folder is not None:
            facts: dict[str, Any] = {
                "state": self.state.facts(),
                "losses": self.losses,
                "score": self.score,
                "num_ranks": self.ranks.world,
            }
            self._folder.save(self._saved, tensors, facts)

    def note_divergence(self, error: NotFinite) -> None:
        """A step that is not finite leaves diverged.json and a checkpoint behind."""
        self.diverged = error
        if self._folder is not None:
            self._folder.note_divergence(error.facts)
        self.save()  # the values are sums over ranks: all of them are here

    def close(self) -> None:
        """Flush the logs and let the folder go."""
        self._held.close()


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
    except (PhistillError, OSError) as error:
        text = str(error)
        if not isinstance(error, PhistillError):
            location = runs[0].resolved.caches.location
            text = f"{location} cannot be read any more ({error.filename}: {error.strerror})."
        learnt = [run for run in runs if run.state.done > run.first_step]
        if learnt and runs[0].ranks.world == 1:
            for run in learnt:
                run.save()
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
    number, ranks = stop.number, runs[0].ranks
    if ranks.world > 1:
        asked = torch.tensor([number], dtype=torch.int64, device=ranks.device)
        number = int(ranks.total(asked).clamp(max=15))
    if number and not all(run.state.is_finished for run in runs):
        for run in runs:
            run.save()
        raise Interrupted(
            f"stopped after step {runs[0].state.done}; everything is saved. "
            "Run the same command again to go on from there.",
            number,
        )
