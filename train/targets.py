"""What the student is asked to predict: one target per teacher and token kind.

The list is fixed when a run begins, goes into its checkpoints, and is enough to build the student
again without the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.errors import UsageError

PATCHES = "patches"
SUMMARY = "summary"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
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

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "teacher": self.teacher,
            "kind": self.kind,
            "width": self.width,
            "grid": list(self.grid),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Target:
        rows, columns = record["grid"]
        return cls(
            teacher=str(record["teacher"]),
            kind=str(record["kind"]),
            width=int(record["width"]),
            grid=(int(rows), int(columns)),
        )


def chosen_teachers(cache: Cache | JoinedCaches, teachers: Sequence[str]) -> tuple[str, ...]:
    """The teachers a run learns from, in the order asked for; UsageError lists the known ones."""
    for name in teachers:
        if name not in cache.teachers:
            raise UsageError(
                f"teachers={list(teachers)}: {cache.location} has no {name!r}; "
                f"it has {', '.join(cache.teachers)}."
            )
    if len(set(teachers)) != len(teachers):
        raise UsageError(f"teachers={list(teachers)} names one twice.")
    return tuple(teachers) or tuple(cache.teachers)


def targets_of(
    cache: Cache | JoinedCaches, teachers: Sequence[str], *, summaries: bool
) -> tuple[Target, ...]:
    """Patches and, where a teacher has one and ``summaries`` asks for it, the summary."""
    found: list[Target] = []
    for name in chosen_teachers(cache, teachers):
        teacher = cache.teacher(name)
        if PATCHES in teacher.kinds:
            found.append(
                Target(
                    teacher=name,
                    kind=PATCHES,
                    width=teacher.widths[PATCHES],
                    grid=teacher.grid,
                )
            )
        if SUMMARY in teacher.kinds and summaries:
            found.append(
                Target(teacher=name, kind=SUMMARY, width=teacher.widths[SUMMARY], grid=(1, 1))
            )
    if not found:
        raise UsageError(f"{cache.location} holds neither patches nor summaries to learn from.")
    return tuple(found)
