"""One run: its folder, and everything that writes into it while the student learns.

config.json             the settings, written before the first step
metrics.jsonl           one line per logged step, validation and end
tensorboard/            the same as events
checkpoints/STEP.*      see checkpoint.py
diverged.json           only after a step that was not finite
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phistill.cache.format import names
from phistill.cache.storage import lock, publish
from phistill.compute.ranks import Ranks
from phistill.errors import LockHeld, RunMismatch, UsageError

from . import checkpoint
from .changes import refuse_changes
from .checkpoint import Checkpoint
from .data.loader import Source
from .evaluation import EvalRow, mean_unexplained, measure, parts_of, refuse_other_teachers
from .metrics import MetricsLog
from .resolve import Lesson
from .state import NotFinite, StepValues, Trainee
from .student.predict import TrainedStudent, normalizer_tensors, stored_normalizers
from .targets import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    step: int
    num_steps: int
    losses: dict[str, float]
    total: float
    lr: float
    gradient_norm: float
    rows_per_s: float
    """Rows learnt per second since the last report."""

    wait_share: float
    """Share of that time spent waiting for data."""

    seconds_left: float

    def line(self) -> str:
        """One line that tells all."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"step {self.step}/{self.num_steps}  {self.note()}  {minutes}:{seconds:02d} left"

    def note(self) -> str:
        """The line without the count of steps and the time left, which a bar shows itself."""
        losses = "  ".join(f"{key} {value:.4f}" for key, value in self.losses.items())
        return (
            f"{losses}  lr {self.lr:.2e}  "
            f"grad {self.gradient_norm:.2f}  {self.rows_per_s:.0f} rows/s  "
            f"waiting {self.wait_share:.1%}"
        )


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What ``train`` leaves behind."""

    path: Path
    num_steps: int
    resumed_from: int
    """Step the call went on from; 0 for a new run, ``num_steps`` when nothing was left to do."""

    num_rows: int
    """Training rows of one epoch."""

    num_heldout: int
    """Rows the run never learns from."""

    losses: dict[str, float]
    """Unweighted terms of the last step."""

    seconds: float
    rows_per_s: float
    wait_share: float
    in_memory: bool
    """Whether the rows were kept in memory."""

    precision: str
    checkpoint: Path


class Run:
    """One run folder being trained: the trainee and everything that writes down what it does."""

    def __init__(
        self, path: Path, lesson: Lesson, ranks: Ranks, progress: ProgressCallback | None
    ) -> None:
        self.path, self.lesson, self.ranks, self.progress = path, lesson, ranks, progress
        self.config = lesson.config
        self.score: float | None = None
        self._log: MetricsLog | None = None
        self._since: tuple[float, int, float] | None = None
        self._held = contextlib.ExitStack()
        # What is refused leaves no folder behind, so it is looked at before one is locked.
        refuse_changed_settings(path, lesson)
        built = None if checkpoint.steps(path) else lesson.new_trainee(ranks)
        if ranks.is_first:
            self._held.enter_context(_only_trainer(path))
        try:
            self._go_on(built)
        except BaseException:
            self._held.close()
            raise

    def _go_on(self, built: Trainee | None) -> None:
        """Take up the folder's latest checkpoint, or begin with the trainee that was built."""
        path, lesson, ranks = self.path, self.lesson, self.ranks
        refuse_changed_settings(path, lesson)  # another process may have begun a run meanwhile
        found = checkpoint.load_latest(path)
        if found is not None:
            lesson = self.lesson = _as_stored(path, lesson, found)
            _warn_of_other_ranks(path, found, ranks)
            # A checkpoint brings its weights: going on needs no hub.
            bare = replace(lesson, config=replace(lesson.config, pretrained=False))
            self.trainee = bare.new_trainee(ranks)
            self.trainee.restore(found.tensors, found.facts["state"])
        else:
            self.trainee = built or lesson.new_trainee(ranks)
        self.first_step = self.trainee.done
        self.losses: dict[str, float] = dict(found.facts["losses"]) if found is not None else {}
        self.saved = self.first_step if found is not None else -1
        ranks.barrier()  # every rank has looked at the folder before the first writes into it
        if ranks.is_first:
            self._begin()

    @property
    def is_finished(self) -> bool:
        return self.trainee.done >= self.lesson.plan.num_steps

    def _begin(self) -> None:
        if not (self.path / "config.json").exists():
            facts = {k: v for k, v in self.lesson.facts().items() if k not in ("means",)}
            publish.publish_bytes(
                self.path / "config.json", json.dumps(facts, indent=1, sort_keys=True).encode()
            )
        if not self.is_finished:
            self._log = MetricsLog(
                self.path,
                first_step=self.first_step,
                tensorboard=self.config.tensorboard,
                wandb=self.config.wandb,
                config=self.config.to_dict(),
            )

    def learn(self, batch: Any) -> StepValues:
        """One step; a value that is not finite leaves diverged.json behind."""
        if self._since is None:
            self._since = (time.perf_counter(), self.trainee.done, 0.0)
        try:
            values = self.trainee.learn(batch)
        except NotFinite as error:
            if self.ranks.is_first:
                text = json.dumps(error.facts, indent=1).encode()
                publish.publish_bytes(self.path / "diverged.json", text)
            self.save()  # the values are sums over ranks: all of them are here
            raise
        self.losses, self.score = values.losses, None
        return values

    def report(self, values: StepValues, wait_s: float) -> None:
        """Log the step and tell who watches, every ``log_every`` steps and at the last."""
        last = values.step == self.lesson.plan.num_steps
        if not self.ranks.is_first or (values.step % self.config.log_every and not last):
            return
        now = time.perf_counter()
        begun, step, waited = self._since or (now, values.step, wait_s)
        self._since = (now, values.step, wait_s)
        seconds, num_steps = max(now - begun, 1e-9), values.step - step
        progress = Progress(
            step=values.step,
            num_steps=self.lesson.plan.num_steps,
            losses=values.losses,
            total=values.total,
            lr=values.lr,
            gradient_norm=values.gradient_norm,
            rows_per_s=num_steps * self.config.batch_size / seconds,
            wait_share=(wait_s - waited) / seconds,
            seconds_left=(self.lesson.plan.num_steps - values.step) * seconds / max(1, num_steps),
        )
        if self._log is not None:
            numbers = {k: v for k, v in asdict(values).items() if k != "step" and v != {}}
            speed = {"rows_per_s": progress.rows_per_s, "wait_share": progress.wait_share}
            self._log.write("train", values.step, numbers | speed)
        if self.progress is not None:
            self.progress(progress)

    def validate(self, source: Source) -> list[EvalRow]:
        """Held-out rows, every ``validate_every`` steps and at the end; [] at other steps."""
        step, every = self.trainee.done, self.config.validate_every
        if not self.ranks.is_first or not (self.is_finished or (every and step % every == 0)):
            return []
        teachers = list(dict.fromkeys(target.teacher for target in self.lesson.targets))
        parts = parts_of(self.lesson.cache, teachers, "heldout", self.config.validate_rows)
        if not parts:
            return []
        with self.trainee.averaged() as student:
            wrapped = TrainedStudent(student, self.config, self.lesson.normalizers, {})
            wrapped.to(self.ranks.device)
            lines = [
                line
                for part in parts
                for line in measure(
                    wrapped, source, part.rows, self.lesson.means, label="trained", cache=part.cache
                )
            ]
        self.score = mean_unexplained(lines)
        if self._log is not None:
            named = {
                line.column: {
                    key: value for key, value in line.to_dict().items() if isinstance(value, float)
                }
                for line in lines
            }
            self._log.write("validate", step, {"score": self.score, **named})
        return lines

    def keep(self) -> None:
        """Save every ``checkpoint_every`` steps and at the end."""
        every = self.config.checkpoint_every
        if self.is_finished or (every and self.trainee.done % every == 0):
            self.save()

    def save(self) -> Path:
        """Publish a checkpoint of the state after the last step; on all ranks at once."""
        done = self.trainee.done
        path = self.path / checkpoint.FOLDER / f"{done:08d}.safetensors"
        if done == self.saved:
            return path
        self.saved, tensors = done, self.trainee.tensors()
        if not self.ranks.is_first:
            return path
        facts = self.lesson.facts() | {
            "state": self.trainee.state(),
            "losses": self.losses,
            "score": self.score,
            "num_ranks": self.ranks.world,
        }
        tensors |= normalizer_tensors(self.lesson.normalizers)
        path = checkpoint.save(self.path, Checkpoint(done, tensors, facts))
        checkpoint.prune(self.path, self.config.keep_checkpoints)
        return path

    def close(self) -> None:
        """Flush the logs and let the folder go."""
        self._held.close()
        if self._log is not None:
            self._log.close()
            self._log = None


def refuse_changed_settings(path: Path, lesson: Lesson) -> None:
    """RunMismatch when the folder's config.json is that of another run, UsageError for what is no
    run folder."""
    if path.is_file():
        raise UsageError(f"{path} is a file, not a run folder. Choose another --out.")
    facts = stored_facts(path)
    if facts is None:
        if path.exists() and any(not _is_leftover(entry) for entry in path.iterdir()):
            raise UsageError(f"{path} is not empty and not a run. Choose another --out.")
        return
    refuse_changes(path, facts["config"], lesson.config.to_dict())
    refuse_other_teachers(lesson.cache, facts["teachers"], path)
    if facts["order_digest"] != lesson.plan.digest:
        raise RunMismatch(
            f"{path} was begun on {facts['num_rows']} training rows; {lesson.cache.location} now "
            f"gives {lesson.plan.num_images} or orders them differently. Train into another --out."
        )
    # Runs begun by older versions do not say which images their rows are.
    if facts.get("images_digest", lesson.plan.images) != lesson.plan.images:
        raise RunMismatch(
            f"{path} was begun on other images: the rows of {lesson.cache.location} are as many "
            "and come in the same order, but the index calls their images differently now. Take "
            "the cache the run was begun on, or train into another --out."
        )


def stored_facts(path: Path) -> dict[str, Any] | None:
    """What a run folder's config.json says; None where there is none yet."""
    stored = path / "config.json"
    try:
        facts = json.loads(stored.read_bytes())
        if not isinstance(facts["config"], dict):
            raise TypeError("config is not a table")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunMismatch(f"{stored} cannot be read ({error}). Choose another --out.") from error
    return dict(facts)


def _is_leftover(entry: Path) -> bool:
    """What a run that was killed before it published its settings may have written."""
    return entry.name == names.LOCK or entry.name.endswith(publish.TEMPORARY_SUFFIX)


@contextlib.contextmanager
def _only_trainer(path: Path) -> Iterator[None]:
    """Hold the run folder; LockHeld names the process that has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.writing(path))
        except LockHeld as error:
            holder = str(error).partition(" is being written by ")[2].partition(". ")[0]
            raise LockHeld(
                f"{path} is being trained by {holder}. Wait for it, stop it, or take another --out."
            ) from error
        yield


def _warn_of_other_ranks(path: Path, found: Checkpoint, ranks: Ranks) -> None:
    before = found.facts.get("num_ranks", ranks.world)
    if before != ranks.world and ranks.is_first:
        warnings.warn(
            f"{path} was trained by {before} processes, now there are {ranks.world}: the run goes "
            "on with the same rows, but not bit for bit.",
            stacklevel=2,
        )


def _as_stored(path: Path, lesson: Lesson, found: Checkpoint) -> Lesson:
    """The lesson with the checkpoint's normalizers and precision: never fitted again."""
    facts = found.facts
    if facts["num_threads"] != torch.get_num_threads():
        warnings.warn(
            f"{path} was trained with {facts['num_threads']} threads, this process has "
            f"{torch.get_num_threads()}: the run goes on, but not bit for bit.",
            stacklevel=2,
        )
    return Lesson(
        cache=lesson.cache,
        config=lesson.config,
        targets=tuple(Target.from_dict(record) for record in facts["targets"]),
        normalizers=stored_normalizers(found),
        means={key: np.asarray(value) for key, value in facts["means"].items()},
        dispersions=facts["dispersions"],
        image_size=int(facts["image_size"]),
        plan=lesson.plan,
        precision=str(facts["precision"]),
    )
