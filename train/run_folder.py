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

from phistill.cache.format import names
from phistill.cache.storage import lock, publish
from phistill.compute.copies import host_copies
from phistill.errors import LockHeld, RunMismatch, UsageError

from . import checkpoint
from .checkpoint import Checkpoint
from .checkpoint_writer import CheckpointWriter
from .config import SAFE_KEYS, TrainConfig
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


LENGTH = frozenset({"num_steps", "epochs"})
"""Settings that say how long a run is."""


def gets_more(stored: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a config asks for another length than the stored one."""
    before, wanted = TrainConfig().to_dict() | dict(stored), config.to_dict()
    return any(before[key] != wanted[key] for key in LENGTH)


def refuse_changes(
    path: Path, stored: Mapping[str, Any], config: TrainConfig, *, extend: bool = False
) -> None:
    """RunMismatch with one line per setting that differs from the run folder's own.

    Settings of ``SAFE_KEYS`` may differ, and with ``extend`` the length; one that the folder does
    not name had its default.
    """
    before = TrainConfig().to_dict() | dict(stored)
    wanted = config.to_dict()
    free = SAFE_KEYS | LENGTH if extend else SAFE_KEYS
    differing = [
        key for key in sorted({*before, *wanted} - free) if before.get(key) != wanted.get(key)
    ]
    if differing:
        lines = "".join(
            f"\n  {key}: {before.get(key)!r} -> {wanted.get(key)!r}" for key in differing
        )
        longer = " --extend gives it more steps." if LENGTH.issuperset(differing) else ""
        raise RunMismatch(
            f"{path} was begun with other settings:{lines}\n"
            f"Give the same settings to go on, or another --out for a new run.{longer}"
        )


def refuse_another_run(path: Path, run: ResolvedRun, *, extend: bool = False) -> None:
    """RunMismatch when the folder is that of another run, UsageError for what is no run folder."""
    if path.is_file():
        raise UsageError(f"{path} is a file, not a run folder. Choose another --out.")
    facts = stored_facts(path)
    if facts is None:
        if path.exists() and any(not _is_leftover(entry) for entry in path.iterdir()):
            raise UsageError(f"{path} is not empty and not a run. Choose another --out.")
        return
    refuse_changes(path, facts["config"], run.config, extend=extend)
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


def _is_leftover(entry: Path) -> bool:
    """What a run that was killed before it published its settings may have written."""
    return entry.name == names.LOCK or entry.name.endswith(publish.TEMPORARY_SUFFIX)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    publish.publish_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())
