"""One run: the state that is trained, and what is written into its folder when it is due."""

from __future__ import annotations

import contextlib
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from phistill.compute.ranks import Ranks

from . import checkpoint
from .checkpoint import Checkpoint
from .data.source import Source
from .evaluation import EvalRow, mean_score, measure
from .progress import Progress, ProgressCallback
from .resolve import ResolvedRun
from .run_folder import RunFolder, only_trainer, refuse_another_run
from .state import NotFinite, StepValues, TrainState
from .student.predict import TrainedStudent


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
        # The first rank alone looks at the folder: it need not be there on other machines. What is
        # refused leaves none behind, so everything is built before one is locked.
        with ranks.all_or_none():
            if ranks.is_first:
                refuse_another_run(path, resolved)
        begun = ranks.from_first(ranks.is_first and bool(checkpoint.steps(path)))
        new = None if begun else TrainState(resolved, ranks)
        with contextlib.ExitStack() as stack:
            stored = None
            with ranks.all_or_none():
                if ranks.is_first:
                    stack.enter_context(only_trainer(path))
                    refuse_another_run(path, resolved)  # another may have begun one meanwhile
                    stored = checkpoint.load_latest(path)
            stored = _from_first(ranks, stored)
            self.state = self._restored(stored) if stored else new or TrainState(resolved, ranks)
            self.first_step = self.state.done
            self._saved = self.first_step if stored else -1
            self._folder: RunFolder | None = None
            with ranks.all_or_none():
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


def _from_first(ranks: Ranks, stored: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that the first rank goes on from, on every rank."""
    head = ranks.from_first(None if stored is None else (stored.step, stored.facts))
    if head is None:
        return None
    step, facts = head
    tensors = ranks.tensors_from_first(stored.tensors if stored is not None else {})
    return Checkpoint(step, tensors, facts)
