"""What long work shows while it runs, on stderr: a bar with rate and time left on a terminal, a
line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_FIRST_S = 10.0
LOG_EVERY_S = 60.0
"""Where nobody watches, the first line comes after so long, and then one so often."""


class Bar(Protocol):
    """``bar(done, total, note)`` moves the bar and says something beside it."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


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
        task = progress.add_task(title, total=None, note="")

        def move(done: float, total: float, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield move


class LogLines:
    """``bar(done, total, note)`` as lines: ``extract: 1,200 of 5,000 (24 %), NOTE, 12:30 left``."""

    def __init__(
        self,
        title: str,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._write, self._clock = title, write, clock
        self._started = clock()
        self._next = self._started + LOG_FIRST_S
        self._first_done: float | None = None

    def __call__(self, done: float, total: float, note: str = "") -> None:
        now = self._clock()
        if self._first_done is None:
            self._started, self._first_done = now, done
        if now < self._next:
            return
        self._next = now + LOG_EVERY_S
        share = f" ({done / total:.0%})" if total else ""
        parts = [f"{self._title}: {done:,.0f} of {total:,.0f}{share}"]
        if note:
            parts.append(note)
        if (moved := done - self._first_done) > 0:
            left = (now - self._started) * (total - done) / moved
            parts.append(f"{duration_text(left)} left")
        self._write(", ".join(parts))


def bytes_text(num_bytes: float) -> str:
    """Bytes in decimal units: ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def duration_text(seconds: float) -> str:
    """``0:07``, ``12:30`` or ``3:05:00``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
