"""One run: the state that is trained, and what is written into its folder when it is due."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from phistill.compute.ranks import Ranks

from . import checkpoint
from .checkpoint import Checkpoint
from .data.batch import Batch
from .data.source import Source
from .evaluation import EvalRow, knn_accuracy, mean_score, measure
from .progress import Progress, ProgressCallback
from .resolve import ResolvedRun
from .run_folder import RunFolder, only_trainer, refuse_another_run
from .step.state import TrainState
from .step.values import NotFinite, StepValues
from .student.predict import TrainedStudent

log = logging.getLogger(__name__)


class Run:
    """A run folder and the state that is trained into it; all events of a run are its methods."""

    def __init__(
        self,
        path: Path,
        resolved: ResolvedRun,
        ranks: Ranks,
        progress: ProgressCallback | None = None,
        *,
        extend: bool = False,
    ) -> None:
        self.path, self.resolved, self.ranks, self.progress = path, resolved, ranks, progress
        self.config = resolved.config
        self.losses: dict[str, float] = {}
        self._scored = (-1, math.nan)
        """Step of the last validation and what the best is chosen by; lower is better."""
        self.diverged: NotFinite | None = None
        """Why no further step is possible."""
        self._since = (0.0, 0, 0.0)
        """Time, step and seconds waited at the last report."""
        # The first rank alone looks at the folder: it need not be there on other machines. What is
        # refused leaves none behind, so everything is built before one is locked.
        with ranks.all_or_none():
            if ranks.is_first:
                refuse_another_run(path, resolved, extend=extend)
        begun = ranks.from_first(ranks.is_first and bool(checkpoint.steps(path)))
        new = None if begun else TrainState(resolved, ranks)
        with contextlib.ExitStack() as stack:
            stored = None
            with ranks.all_or_none():
                if ranks.is_first:
                    stack.enter_context(only_trainer(path))
                    refuse_another_run(
                        path, resolved, extend=extend
                    )  # another may have begun one meanwhile
                    stored = checkpoint.load_latest(path)
            stored = _from_first(ranks, stored)
            self.state = self._restored(stored) if stored else new or TrainState(resolved, ranks)
            self.first_step = self.state.done
            log.debug("%s: from step %d to %d", path, self.first_step, self.state.num_steps)
            self._saved = self.first_step if stored else -1
            self._saved_at = time.monotonic()
            best = checkpoint.best_score(path) if ranks.is_first else None
            self._best = math.inf if best is None else best
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

    def train_step(self, batch: Batch) -> None:
        """One step; on a CPU it is looked at, and a run that diverges says so in ``diverged``."""
        try:
            self.state.train_step(batch)
        except NotFinite as error:
            self._note_divergence(error)

    def log_if_due(self, wait_s: float) -> None:
        """Every ``log_every`` steps and at the last, look at the step, log it and tell who watches.

        ``wait_s`` is how long all steps so far have waited for data.
        """
        due = self.state.is_finished or self.state.done % self.config.log_every == 0
        values = self._look() if due else None
        if values is None or self._folder is None:
            return
        self._folder.writer.raise_failure()
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
        step = self.state.done
        if not self._is_validation_due() or self._look() is None or self._folder is None:
            return []
        resolved = self.resolved
        if not resolved.heldout:
            return []
        with self.state.averaged() as student:
            trained = TrainedStudent(student, self.config, resolved.normalizers, resolved.facts())
            trained.to(self.ranks.device)
            asked = [part.rows[: self.config.validate_rows] for part in resolved.heldout]
            lines = [
                line
                for part, rows in zip(resolved.heldout, asked, strict=True)
                for line in measure(
                    trained, source, rows, resolved.means, label="trained", cache=part.cache
                )
            ]
            taught = resolved.plan.rows
            knn = knn_accuracy(trained, source, taught, np.concatenate(asked))
        score = mean_score(lines)
        by_knn = self.config.best_by == "knn"
        self._scored = step, 1 - (knn or 0.0) if by_knn else score
        figures = {
            line.column: {k: v for k, v in line.to_dict().items() if isinstance(v, float)}
            for line in lines
        }
        known = {} if knn is None else {"knn": knn}
        self._folder.log("validate", step, {"score": score, **known, **figures})
        return lines

    def save_if_due(self) -> bool:
        """Save at the end, after the best validation so far, and when steps or minutes ask for it.

        The clock, which is the first rank's, is read where the values were looked at anyway.
        True when the state was copied and is being written.
        """
        step, config, saved = self.state.done, self.config, self._saved
        if self.state.is_finished or (
            config.checkpoint_every and step % config.checkpoint_every == 0
        ):
            self.save()
        elif self._is_validation_due() or step % config.log_every == 0:
            minutes = (time.monotonic() - self._saved_at) / 60
            due = 0 < config.checkpoint_minutes <= minutes
            due |= self._scored[0] == step and self._scored[1] < self._best
            if self.ranks.largest(int(due and self.ranks.is_first)):
                self.save()
        return self._saved != saved

    def save(self) -> None:
        """Begin to publish a checkpoint of the state after the last step; on all ranks at once."""
        if self.state.done != self._saved and self._look() is not None:
            self._publish()

    def wait_until_saved(self) -> None:
        """Wait for the checkpoint that is being written; raises what its write failed with."""
        if self._folder is not None:
            self._folder.writer.wait()

    def _is_validation_due(self) -> bool:
        every = self.config.validate_every
        return self.state.is_finished or bool(every and self.state.done % every == 0)

    def _look(self) -> StepValues | None:
        """What the last step measured; None where the run has diverged, which is then noted."""
        if self.diverged is not None:
            return None
        try:
            values = self.state.look()
        except NotFinite as error:
            self._note_divergence(error)
            return None
        if values is not None:
            self.losses = values.losses
        return values

    def _publish(self) -> None:
        self._saved, self._saved_at = self.state.done, time.monotonic()
        tensors = self.state.tensors()
        if self._folder is None:
            return
        score = self._scored[1] if self._scored[0] == self._saved else None
        if score is not None:
            self._best = min(self._best, score)
        facts: dict[str, Any] = {
            "state": self.state.facts(),
            "losses": self.losses,
            "score": score,
            "num_ranks": self.ranks.world,
        }
        self._folder.save(self._saved, tensors, facts)

    def _note_divergence(self, error: NotFinite) -> None:
        """A step that is not finite leaves diverged.json and a checkpoint of the one before."""
        self.diverged = error
        if self._folder is not None:
            self._folder.note_divergence(error.facts)
        if self.state.done != self._saved:
            self._publish()  # the values are sums over ranks: all of them are here

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
