"""What a command tells beside its result, on stderr: notes and progress, less with ``-q``, more
with ``-v``.

The library logs to loggers named after its modules and configures nothing. Here the command line
shows what they say: notes (INFO), and with ``-v`` what was chosen and why (DEBUG).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from phistill.report.terminal import Bar

LOG = logging.getLogger("phistill")


class _ToStderr(logging.Handler):
    """A note as it is; a fact for ``-v`` behind the module that tells it."""

    def emit(self, record: logging.LogRecord) -> None:
        where = f"{record.name}: " if record.levelno < logging.INFO else ""
        # Looked up each time: a bar that is being drawn moves out of the way of what is written.
        click.echo(f"{where}{record.getMessage()}", err=True)


@contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show what phistill's loggers say while entered; they are left as they were."""
    level, propagate, handler = LOG.level, LOG.propagate, _ToStderr()
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # some libraries set the root logger up, and would say all of it again
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        LOG.propagate = propagate


def _set_level(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        LOG.setLevel(logging.DEBUG if option.name == "verbose" else logging.WARNING)


def add_options(command: click.Command) -> None:
    """Give a command ``-v`` and ``-q``; of both the last counts."""
    for flags, text in (
        (("-v", "--verbose"), "Tell more on stderr: what was chosen and why, and every retry."),
        (("-q", "--quiet"), "Neither notes nor progress; warnings and errors remain."),
    ):
        command.params.append(
            click.Option(flags, is_flag=True, expose_value=False, callback=_set_level, help=text)
        )


def progress(title: str, *, lines: bool = False) -> AbstractContextManager[Bar]:
    """``progress_bar``, or with ``-q`` one that shows nothing."""
    from phistill.report.terminal import NoBar, progress_bar

    quiet = not LOG.isEnabledFor(logging.INFO)
    return nullcontext(NoBar()) if quiet else progress_bar(title, lines=lines)
