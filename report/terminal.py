"""What long work shows while it runs, on stderr: a bar with rate and time left on a terminal, a
line a minute in a log."""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from html import escape
from typing import Any, Protocol

from rich import filesize
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

NOTEBOOK_EVERY_S = 0.2
"""A notebook keeps every change of an output."""


class Event(Protocol):
    """Where a verb is."""

    @property
    def num_done(self) -> int: ...

    @property
    def num_total(self) -> int: ...

    def note(self) -> str:
        """What to say beside the bar."""


class Bar(ABC):
    """``bar(done, total, note)`` moves the bar and says something beside it; ``part`` names one of
    several works that go on side by side."""

    @abstractmethod
    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None: ...

    def event(self, at: Event) -> None:
        """The same of what a verb tells: ``phistill.train(..., progress=bar.event)``."""
        self(at.num_done, at.num_total, at.note())

    def bytes(self, done: float, total: float, note: str = "") -> None:
        """The same for work that is measured in bytes: says how many there are."""
        self(done, total, f"{note} {bytes_text(total)}".strip())


@contextmanager
def progress_bar(title: str, *, lines: bool = False) -> Iterator[Bar]:
    """A bar that is drawn on a terminal or in a notebook; elsewhere lines, which a batch system's
    log keeps.

    >>> with phistill.progress_bar("train") as bar:  # doctest: +SKIP
    ...     phistill.train("my.cache", "runs/phi-s", progress=bar.event)

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
    if (shell := _notebook()) is not None:
        yield _NotebookBar(title, shell)
        return
    console = Console(stderr=True)
    if lines or not console.is_terminal:
        yield LogLines(title, lambda line: console.out(line, highlight=False))
        return
    with Progress(*columns, console=console) as progress:
        yield _DrawnBar(progress, title)


class NoBar(Bar):
    """Shows nothing."""

    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None:
        pass


class _DrawnBar(Bar):
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._task = progress, progress.add_task(title, total=None, note="")

    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None:
        note = f"{part}: {note}" if part else note
        self._progress.update(self._task, completed=done, total=total, note=note)


def _notebook() -> Any:
    """IPython's display module where cells show HTML, None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not shell.has_trait("kernel"):
        return None
    return importlib.import_module("IPython.display")


class _NotebookBar(Bar):
    """One output of the cell, changed in place: needs no widgets."""

    def __init__(self, title: str, display: Any) -> None:
        self._title, self._display = title, display
        self._begun = time.monotonic()
        self._next = self._begun
        self._handle: Any = None

    def __call__(self, done: float, total: float, note: str = "", part: str = "") -> None:
        note = f"{part}: {note}" if part else note
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + NOTEBOOK_EVERY_S
        words = f"{done:,.0f} of {total:,.0f}, {duration_text(now - self._begun)} {note}"
        page = self._display.HTML(
            f"{escape(self._title)} <progress value='{done:.0f}' max='{total:.0f}'></progress> "
            f"{escape(words)}"
        )
        if self._handle is None:
            self._handle = self._display.display(page, display_id=True)
        else:
            self._handle.update(page)


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


def licences_text(licences: Mapping[str, str | None]) -> str:
    """A short line: ``Licences: apache-2.0 (a, c), unknown (b): check the model card.``"""
    teachers: dict[str, list[str]] = {}
    for name, licence in sorted(licences.items(), key=lambda item: item[1] is None):
        teachers.setdefault(licence or "unknown", []).append(name)
    listed = ", ".join(f"{licence} ({', '.join(names)})" for licence, names in teachers.items())
    advice = ": check the model card" if None in licences.values() else ""
    return f"Licence{'s' if len(teachers) > 1 else ''}: {listed}{advice}."
