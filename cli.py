"""The ``phistill`` command: which commands there are, and how errors become exit codes.

The commands are in ``commands/``. Data goes to stdout, progress and errors to stderr. Exit codes: 0
done, 1 a failure the message explains, 2 wrong usage, 130 and 143 interrupted and resumable.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType
from typing import Any, NoReturn

import click

from phistill import __version__
from phistill.commands import caches, exchange, extracting, pages, training

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Terminated(BaseException):
    """SIGTERM arrived."""


class _Commands(click.Group):
    """Lists commands in the order of work; turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        # OpenMP's threads spin for work by default: on two busy cores a training step then takes
        # ten times as long (docs/log.md). Read when torch is loaded, which happens later.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        warnings.formatwarning = _as_one_line
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (KeyboardInterrupt, _Terminated) as stop:
            click.echo(
                "Interrupted. What was finished is kept; run the same command again to go on.",
                err=True,
            )
            sys.exit(143 if isinstance(stop, _Terminated) else 130)
        except Exception as error:
            from phistill.errors import PhistillError, UsageError

            if (
                isinstance(error, OSError)
                and error.filename
                and not isinstance(error, PhistillError)
            ):
                click.echo(f"Error: {error.filename}: {error.strerror}.", err=True)
                sys.exit(1)
            if not isinstance(error, PhistillError):
                raise
            click.echo(f"Error: {error}", err=True)
            number = getattr(error, "signal_number", 0)
            sys.exit(128 + number if number else 2 if isinstance(error, UsageError) else 1)


def _as_one_line(message: Warning | str, *where: Any, **more: Any) -> str:
    """What is wrong; the line of the program that said so helps nobody at a terminal."""
    return f"Warning: {message}\n"


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


@click.group(cls=_Commands, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="phistill")
def main() -> None:
    """Cache every teacher once. Distill as many students as you like.

    \b
    phistill extract IMAGES --cache my.cache --teacher ssl=demo:ssl --teacher demo:clip
    phistill fit-stats my.cache
    phistill train my.cache --out runs/phi-s
    phistill evaluate runs/phi-s

    A cache is a folder, or a URL on an object store: s3://bucket/my.cache (phistill[s3]).
    """


for command in (
    extracting.extract,
    training.fit_stats,
    training.train,
    training.evaluate,
    training.export,
    training.sweep,
    training.export_normalizer,
    caches.inspect,
    caches.verify,
    exchange.stage,
    exchange.import_features,
    exchange.export_features,
    caches.merge,
    caches.remove_images,
    caches.compact,
    caches.remove_teacher,
    pages.report,
    pages.plan,
    pages.doctor,
    pages.check_teacher,
    pages.demo,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
