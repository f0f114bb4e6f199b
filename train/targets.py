"""What the student is asked to predict: one target per teacher and token kind.

The list is fixed when a run begins, goes into its checkpoints, and is enough to build the student
again without the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from phistill.cache.joined import JoinedCaches
from phistill.errors import UsageError

PATCHES = "patches"
SUMMARY = "summary"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One teacher's patches or summary."""

    teacher: str
    kind: str
    width: int
    """Channels of one vector."""

    grid: tuple[int, int]
    """Token rows and columns; (1, 1) for a summary."""

    @property
    def key(self) -> str:
        """``TEACHER/KIND``, the name used in logs, weights and checkpoints."""
        return f"{self.teacher}/{self.kind}"


def learns_direction(target: Target, summary_loss: str) -> bool:
    """Whether only the direction of a target is learnt: its length then means nothing."""
    return target.kind == SUMMARY and summary_loss != "mse"


def chosen_teachers(caches: JoinedCaches, teachers: Sequence[str]) -> tuple[str, ...]:
    """The teachers a run learns from, in the order asked for; UsageError lists the known ones."""
    for name in teachers:
        if name not in caches.teachers:
            raise UsageError(
                f"teachers={list(teachers)}: {caches.location} has no {name!r}; "
                f"it has {', '.join(caches.teachers)}."
            )
    if len(set(teachers)) != len(teachers):
        raise UsageError(f"teachers={list(teachers)} names one twice.")
    return tuple(teachers) or caches.teachers


def targets_of(
    caches: JoinedCaches, teachers: Sequence[str], *, summaries: bool
) -> tuple[Target, ...]:
    """Patches and, where a teacher has one and ``summaries`` asks for it, the summary."""
    kinds = (PATCHES, SUMMARY) if summaries else (PATCHES,)
    targets = []
    for name in chosen_teachers(caches, teachers):
        teacher = caches.teacher(name)
        targets += [
            Target(
                teacher=name,
                kind=kind,
                width=teacher.widths[kind],
                grid=teacher.grid if kind == PATCHES else (1, 1),
            )
            for kind in kinds
            if kind in teacher.kinds
        ]
    if not targets:
        raise UsageError(f"{caches.location} holds neither patches nor summaries to learn from.")
    return tuple(targets)
