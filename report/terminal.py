"""What long work shows while it runs, on stderr: a bar with rate and time left on a terminal, a
line a minute in a log."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO

from rich import filesize
from rich.box import Box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

LOG_FIRST_S = 10.0
LOG_EVERY_S = 60.0
"""Where nobody watches, the first line comes after so long, and then one so often."""

_RULED = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
"""Nothing but a line of hyphens below the header."""


class Bar(ABC):
    """``bar(done, total, note)`` moves the bar and says something beside it; ``part`` names one of
    several works that go on side by side."""

    @abstractmethod
    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None: ...

    def bytes(self, done: float, total: float, note: str = "") -> None:
        """The same for work that is measured in bytes: says how many there are."""
        self(done, total, f"{note} {bytes_text(total)}".strip())


@contextmanager
def progress_bar(title: str, *, lines: bool = False) -> Iterator[Bar]:
    """A bar that is drawn on a terminal; elsewhere lines, which a batch system's log keeps.

    ``lines`` are also for processes that share a terminal: only one of them could draw.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    if lines or not console.is_terminal:
        yield LogLines(title, lambda line: print(line, file=sys.stderr, flush=True))
        return
    with Progress(*columns, console=console) as progress:
        yield _DrawnBar(progress, title)


class _DrawnBar(Bar):
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._task = progress, progress.add_task(title, total=None, note="")

    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None:
        note = f"{part}: {note}" if part else note
        self._progress.update(self._task, completed=done, total=total, note=note)


class LogLines(Bar):
    """``bar(done, total, note)`` as lines: ``extract: 1,200 of 5,000 (24 %), NOTE, 12:30 left``; of
    works side by side a line for each."""

    def __init__(
        self,
        title: str,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._write, self._clock = title, write, clock
        self._next = clock() + LOG_FIRST_S
        self._begun: dict[str, tuple[float, float]] = {}
        """Time and what was done at the first call, by part."""
        self._moved: dict[str, tuple[float, float, str]] = {}
        """What has been said of each part since its last line."""

    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None:
        now = self._clock()
        self._begun.setdefault(part, (now, done))
        self._moved[part] = done, total, note
        if now < self._next:
            return
        self._next = now + LOG_EVERY_S
        for name, latest in self._moved.items():
            self._write(self._line(name, now, *latest))
        self._moved.clear()

    def _line(self, part: str, now: float, done: float, total: float, note: str) -> str:
        share = f" ({done / total:.0%})" if total else ""
        title = f"{self._title}, {part}" if part else self._title
        parts = [f"{title}: {done:,.0f} of {total:,.0f}{share}"]
        if note:
            parts.append(note)
        begun, first = self._begun[part]
        if done > first:
            left = (now - begun) * (total - done) / (done - first)
            parts.append(f"{duration_text(left)} left")
        return ", ".join(parts)


UNKNOWN_LICENCE = "unknown: check the model card"


def bytes_text(num_bytes: float) -> str:
    """Bytes in decimal units: ``1.3 GB``."""
    return filesize.decimal(round(num_bytes))


def duration_text(seconds: float) -> str:
    """``0:00:07``, ``0:12:30`` or ``1 day, 3:05:00``."""
    return str(timedelta(seconds=round(seconds)))


def table_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0,)
) -> str:
    """Aligned columns for a terminal or a pipe, never wrapped; ``words`` are aligned to the left,
    the other columns hold numbers."""
    table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, title in enumerate(header):
        table.add_column(title, justify="left" if number in words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=StringIO(), width=10_000, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def licences_text(licences: Mapping[str, str | None]) -> str:
    """A short line: ``Licences: apache-2.0 (a, c), unknown (b): check the model card.``"""
    teachers: dict[str, list[str]] = {}
    for name, licence in sorted(licences.items(), key=lambda item: item[1] is None):
        teachers.setdefault(licence or "unknown", []).append(name)
    listed = ", ".join(f"{licence} ({', '.join(names)})" for licence, names in teachers.items())
    advice = ": check the model card" if None in licences.values() else ""
    return f"Licence{'s' if len(teachers) > 1 else ''}: {listed}{advice}."
