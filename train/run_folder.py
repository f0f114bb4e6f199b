"""The files of one run, and who may write them.

config.json             the settings, written before the first step
metrics.jsonl           one line per logged step, validation and end
tensorboard/            the same as events
checkpoints/STEP.*      see checkpoint.py
diverged.json           only after a step that was not finite
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from phistill.cache.storage import lock, publish
from phistill.compute.copies import host_copies
from phistill.errors import LockHeld, RunMismatch, UsageError

from . import checkpoint
from .checkpoint import Checkpoint, facts_of_the_run, stored_facts
from .checkpoint_writer import CheckpointWriter
from .evaluation import refuse_other_teachers
from .metrics import Logger, Values, open_loggers
from .resolve import ResolvedRun, codecs_of
from .student.predict import normalizer_tensors

DIVERGED = "diverged.json"


class RunFolder:
    """The files of a run that is being trained, written by one process alone."""

    def __init__(self, path: Path, run: ResolvedRun, *, first_step: int) -> None:
        self.path, self.run = path, run
        facts, now = stored_facts(path), run.facts()
        del now["means"]
        if facts is None:
            facts = now | {"run_id": uuid.uuid4().hex}
            _write_json(path / "config.json", facts)
        elif run.num_steps > facts["num_steps"]:  # which the caller has asked for
            before = [*facts.get("num_steps_before", []), facts["num_steps"]]
            facts = now | {"run_id": facts["run_id"], "num_steps_before": before}
            _write_json(path / "config.json", facts)
        self.writer = CheckpointWriter(path, keep=run.config.keep_checkpoints)
        self._loggers: list[Logger] = []
        if first_step < run.num_steps:
            publish.remove(path / DIVERGED)  # of an earlier attempt; it is written anew if need be
            self._loggers = open_loggers(
                path, run.config, first_step=first_step, run_id=facts["run_id"]
            )

    def log(self, event: str, step: int, values: Values) -> None:
        """Tell every logger."""
        for logger in self._loggers:
            logger.write(event, step, values)

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Begin to publish a checkpoint of the state after ``step``; those not kept any more go.

        ``tensors`` are copied first.
        """
        everything = {**host_copies(tensors), **normalizer_tensors(self.run.normalizers)}
        self.writer.submit(Checkpoint(step, everything, {**self.run.facts(), **facts}))

    def note_divergence(self, facts: Mapping[str, Any]) -> None:
        """Write which rows were learnt from when a step was not finite."""
        _write_json(self.path / DIVERGED, facts)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and flush the logs."""
        try:
            self.writer.close()
        finally:
            for logger in self._loggers:
                logger.close()
            self._loggers = []


def is_finished(path: Path) -> bool:
    """Whether the run folder has its last checkpoint, so that nothing will be read."""
    try:
        num_steps = json.loads((path / "config.json").read_bytes())["num_steps"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    return num_steps in checkpoint.steps(path)


def is_diverged(path: Path) -> bool:
    """Whether the run ended at a step that was not finite."""
    return (path / DIVERGED).exists()


def refuse_another_run(path: Path, run: ResolvedRun, *, extend: bool = False) -> None:
    """RunMismatch when the folder is that of another run, UsageError for what is no run folder."""
    facts = facts_of_the_run(path, run.config, extend=extend)
    if facts is None:
        return
    if run.num_steps < facts["num_steps"]:
        raise UsageError(
            f"{path} is a run of {facts['num_steps']} steps; --extend cannot make it one of "
            f"{run.num_steps}. Ask for more, or take another --out."
        )
    refuse_other_teachers(run.caches, facts["teachers"], path)
    before = [entry["codecs"] for entry in facts["caches"]]
    if before != [codecs_of(cache, run.teachers) for cache in run.caches.caches]:
        raise RunMismatch(
            f"{path} was begun on rows that are stored otherwise (as floats, or in other codes) "
            f"than those of {run.caches.location}. Take the cache the run was begun on, or train "
            "into another --out."
        )
    if facts["order_digest"] != run.plan.digest:
        raise RunMismatch(
            f"{path} was begun on {facts['num_rows']} training rows; {run.caches.location} now "
            f"gives {run.plan.num_images} or orders them differently. Train into another --out."
        )
    if facts["images_digest"] != run.plan.images:
        raise RunMismatch(
            f"{path} was begun on other images: the rows of {run.caches.location} are as many "
            "and come in the same order, but the index calls their images differently now. Take "
            "the cache the run was begun on, or train into another --out."
        )


@contextlib.contextmanager
def only_trainer(path: Path) -> Iterator[None]:
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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    publish.publish_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())
