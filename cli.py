"""The ``phistill`` command: parses, calls one verb, prints what a person wants to know next.

Commands import what they need inside themselves, so that ``--help`` costs nothing. Data goes to
stdout, progress and errors to stderr. Exit codes: 0 done, 1 a failure the message explains, 2 wrong
usage, 130 and 143 interrupted and resumable.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from phistill import __version__


class _Terminated(BaseException):
    """SIGTERM arrived."""


class _Commands(click.Group):
    """Turns phistill's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
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
            from phistill.cache.errors import PhistillError, UsageError

            if not isinstance(error, PhistillError):
                raise
            click.echo(f"Error: {error}", err=True)
            sys.exit(2 if isinstance(error, UsageError) else 1)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="phistill")
def main() -> None:
    """Cache every teacher once. Distill as many students as you like.

    \b
    phistill extract IMAGES --cache my.cache --teacher ssl=demo:ssl --teacher demo:clip
    phistill fit-stats my.cache
    phistill train my.cache --out runs/phi-s
    phistill evaluate runs/phi-s
    """


_cache_argument = click.argument("cache", type=click.Path(path_type=Path))


@main.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Cache to write.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="[NAME=]SOURCE:MODEL[?KEY=VALUE&...]",
    help="Teacher to run, repeatable. Without it, the cache's own teachers are finished.",
)
@click.option("--holdout", type=float, help="Fraction of images held out.  [default: 0.05]")
@click.option("--seed", type=int, help="Of the row order and the split.  [default: 0]")
@click.option("--pixel-size", type=int, help="Side of the stored student pixels.  [default: 224]")
@click.option(
    "--view",
    type=click.Choice(["resize", "center-crop"]),
    help="Part of the image that is looked at.  [default: resize]",
)
@click.option(
    "--background",
    type=click.IntRange(0, 255),
    nargs=3,
    metavar="R G B",
    help="Colour behind transparent pixels.  [default: 128 128 128]",
)
@click.option("--min-side", type=int, help="Reject images with a shorter side.  [default: 1]")
@click.option("--shard-rows", type=int, help="Rows per shard, a power of two.  [default: by size]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--autocast",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Arithmetic of the teachers.  [default: bfloat16 on CUDA, else float32]",
)
@click.option("--batch-size", type=int, help="Rows per forward pass of a new teacher.")
@click.option("--workers", type=int, help="Decoding threads.  [default: one per core]")
@click.option(
    "--max-reject-frac",
    type=float,
    default=0.01,
    show_default=True,
    help="Stop when more than this fraction of the rows is rejected.",
)
def extract(
    images: Path,
    cache: Path,
    teachers: tuple[str, ...],
    holdout: float | None,
    seed: int | None,
    pixel_size: int | None,
    view: str | None,
    background: tuple[int, int, int] | None,
    min_side: int | None,
    shard_rows: int | None,
    device: str,
    autocast: str | None,
    batch_size: int | None,
    workers: int | None,
    max_reject_frac: float,
) -> None:
    """Run teachers over IMAGES once and cache their features.

    IMAGES is a folder, a parquet file with an image column, or a text file with one path per line.
    Run it again after an interruption, or with another --teacher: only what is missing is done.
    """
    from phistill.pipeline import CacheSettings, ExtractProgress
    from phistill.pipeline import extract as run
    from phistill.pipeline.decode import DecodeRules
    from phistill.pipeline.views import View
    from phistill.report.terminal import bytes_text, duration_text, progress_bar

    decode = None
    if background or min_side is not None:
        decode = DecodeRules(
            background=background or DecodeRules().background,
            min_side=DecodeRules().min_side if min_side is None else min_side,
        )
    settings = CacheSettings(
        seed=seed,
        holdout=holdout,
        pixel_size=pixel_size,
        views=(View(view),) if view else None,
        decode=decode,
        shard_rows=shard_rows,
    )
    with progress_bar("extract") as bar:

        def show(at: ExtractProgress) -> None:
            rate = at.done_rows / at.elapsed_s if at.elapsed_s else 0.0
            note = f"{rate:.0f} rows/s, {bytes_text(at.written_bytes)}, {at.num_rejects} rejected"
            bar(at.done_rows, at.total_rows, note)

        report = run(
            images,
            cache,
            teachers,
            settings=settings,
            device=device,
            autocast=autocast,
            rows_per_forward=batch_size,
            num_workers=workers,
            max_reject_frac=max_reject_frac,
            on_progress=show,
        )
    found = report.cache
    names = ", ".join(found.teachers)
    if report.num_shards:
        click.echo(
            f"{cache}: {report.num_shards} shards, {bytes_text(report.written_bytes)} written in "
            f"{duration_text(report.elapsed_s)}."
        )
    else:
        click.echo(f"{cache} is complete: nothing to do.")
    click.echo(f"{found.index().num_rows:,} rows, teachers {names}.")
    _print_rejects(report.rejects)
    if report.num_new_images:
        click.echo(f"{report.num_new_images} images in {images} are not in the cache.")
    click.echo(f"Next: phistill fit-stats {cache}")


def _print_rejects(rejects: tuple[tuple[str, str], ...]) -> None:
    if rejects:
        click.echo(f"{len(rejects)} rejected:")
    for name, reason in rejects[:10]:
        click.echo(f"  {name}: {reason}")
    if len(rejects) > 10:
        click.echo(f"  and {len(rejects) - 10} more (phistill inspect {'CACHE'} --rejects).")


if __name__ == "__main__":
    main()
