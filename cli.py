"""The ``phistill`` command: which commands there are, and how errors become exit codes.

The commands are in ``commands/``. Data goes to stdout, progress and errors to stderr. Exit codes: 0
done, 1 a failure the message explains, 2 wrong usage, 130 and 143 interrupted and resumable.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Any, NoReturn

import click

from phistill import __version__
from phistill.cache.storage import limits
from phistill.commands import change, exchange, learn, look, make, verbosity
from phistill.commands.mistakes import setting_advice

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


GROUPS = {
    "Make": (make.extract, make.fit_stats, make.demo),
    "Look": (look.inspect, look.verify, look.report, look.plan, look.check_teacher, look.doctor),
    "Learn": (learn.train, learn.sweep, learn.evaluate, learn.export),
    "Change": (
        change.merge,
        change.remove_images,
        change.compact,
        change.pack,
        change.remove_teacher,
    ),
    "Exchange": (
        *(exchange.stage, exchange.import_features, exchange.export_features),
        exchange.export_normalizer,
        *(exchange.quantize, exchange.dequantize),
    ),
}


INTERRUPTED = "Interrupted. What was finished is kept; run the same command again to go on."
TERMINATE_LIMIT_S = 8.0
"""A command ends within this after SIGTERM, whatever its threads wait for."""


class _Terminated(BaseException):
    """SIGTERM arrived."""


class _Commands(click.Group):
    """Lists commands by what they are for; turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section per group, with the first sentence of each command in full."""
        width = max(len(name) for name in self.commands)
        for title, commands in GROUPS.items():
            lines = [(c.name or "", c.get_short_help_str(limit=1000)) for c in commands]
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in lines])

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        # OpenMP's threads spin for work by default: on two busy cores a training step then takes
        # ten times as long (docs/log.md). Read when torch is loaded, which happens later.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        warnings.formatwarning = _as_one_line
        try:
            with verbosity.shown_on_stderr():
                return super().invoke(ctx)
        except click.NoSuchOption as error:
            if (
                error.ctx
                and error.ctx.command is learn.train
                and (advice := setting_advice(error.option_name, _options(error.ctx)))
            ):
                raise click.UsageError(f"{error.message}{advice}", error.ctx) from None
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (KeyboardInterrupt, _Terminated) as stop:
            click.echo(INTERRUPTED, err=True)
            sys.exit(143 if isinstance(stop, _Terminated) else 130)
        except Exception as error:
            from phistill.errors import PhistillError, UsageError

            if (
                isinstance(error, OSError)
                and error.filename
                and not isinstance(error, PhistillError)
            ):
                advice = f" {limits.out_of_files_text()}" if limits.is_out_of_files(error) else ""
                click.echo(f"Error: {error.filename}: {error.strerror}.{advice}", err=True)
                sys.exit(1)
            if not isinstance(error, PhistillError):
                raise
            click.echo(f"Error: {error}", err=True)
            number = getattr(error, "signal_number", 0)
            sys.exit(128 + number if number else 2 if isinstance(error, UsageError) else 1)


def _options(context: click.Context) -> set[str]:
    """Every option of the command."""
    return {name for param in context.command.get_params(context) for name in param.opts}


def _as_one_line(message: Warning | str, *where: Any, **more: Any) -> str:
    """What is wrong; the line of the program that said so helps nobody at a terminal."""
    return f"Warning: {message}\n"


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"\nStopping ...\n")  # at once: to close what is open may take seconds
    raise KeyboardInterrupt


def _leave() -> NoReturn:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(143)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # What waits for a place that does not answer cannot be ended otherwise, and holds nothing back:
    # a shard counts when its record is written, which is one step.
    limit = threading.Timer(TERMINATE_LIMIT_S, _leave)
    limit.daemon = True
    limit.start()
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

    A cache is a folder, or a URL of an object store: s3://bucket/my.cache.
    """


for commands in GROUPS.values():
    for command in commands:
        main.add_command(command)
        verbosity.add_options(command)
