"""The verb ``evaluate``: every teacher of a run on rows that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phistill.cache import Split
from phistill.cache.joined import CacheArgument, JoinedCaches, open_caches
from phistill.display import Table
from phistill.errors import CorruptCache, IncompleteCache, RunMismatch, UsageError

from ..checkpoint import caches_of_run
from ..data.source import Source, parts_of
from ..student.predict import load_run
from .fidelity import EvalProgress, EvalRow, measure

log = logging.getLogger(__name__)


def evaluate(
    run: Path | str,
    cache: CacheArgument | None = None,
    *,
    untrained: bool = True,
    which: str = "latest",
    split: Split = "heldout",
    max_rows: int = 0,
    device: str = "auto",
    progress: EvalProgress | None = None,
) -> Table[EvalRow]:
    """Every teacher of a run on the cache's held-out rows, for the student and an untrained one.

    ``cache`` defaults to the one the run was trained on. A run on several caches, or a sequence of
    them, gives the lines of each, ``max_rows`` rows of each. Raises IncompleteCache when no row is
    held out, RunMismatch when the cache's teachers are not those of the run.
    """
    student = load_run(run, which=which, device=device)
    caches = open_caches(caches_of_run(student.facts) if cache is None else cache)
    refuse_other_teachers(caches, student.facts["teachers"], run)
    teachers = list(student.facts["teachers"])
    parts = parts_of(caches, teachers, split, max_rows)
    if not parts:
        raise IncompleteCache(
            f"{caches.location} has no {split} row for {', '.join(teachers)}. Extract a cache "
            "with a larger --holdout, or evaluate with --split train."
        )
    source = Source(caches, student.targets)
    means = {key: np.asarray(value) for key, value in student.facts["means"].items()}
    students = [("trained", student)]
    if untrained:
        students.append(("untrained", load_run(run, which=which, untrained=True, device=device)))
    return Table(
        line
        for part in parts
        for label, one in students
        for line in measure(
            one, source, part.rows, means, label=label, cache=part.cache, progress=progress
        )
    )


def card_metrics(
    run: Path | str, *, which: str = "latest", device: str = "auto"
) -> list[dict[str, Any]]:
    """Lines for the model card of an export; [], which is said, where the run's caches are gone,
    were changed or hold nothing out: a student needs them no more."""
    try:
        lines = evaluate(run, untrained=False, which=which, device=device)
    except (UsageError, IncompleteCache, RunMismatch, CorruptCache) as error:
        fact = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        log.info(f"The model card has no figures: {fact}.")
        return []
    return [
        {"teacher": line.teacher, "kind": line.kind, **line.interval.to_dict()} for line in lines
    ]


def refuse_other_teachers(
    caches: JoinedCaches, teachers: Mapping[str, Mapping[str, Any]], run: object
) -> None:
    """RunMismatch naming each field in which the caches' teachers differ from the run's."""
    for cache in caches.caches:
        for name, stored in teachers.items():
            if name not in cache.teachers:
                raise RunMismatch(
                    f"{cache.location} has no teacher {name!r}, which {run} was trained on."
                )
            differing = cache.teacher(name).differences(stored)
            if differing:
                lines = "".join(
                    f"\n  {key}: {before!r} -> {now!r}" for key, (now, before) in differing.items()
                )
                raise RunMismatch(
                    f"teacher {name!r} of {cache.location} is not the one {run} was trained on:"
                    f"{lines}\nTake the cache the run was trained on, or train a new run."
                )
