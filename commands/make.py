"""Making a cache: features, then statistics; and the demo, which makes everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from phistill.pipeline import ExtractProgress
    from phistill.pipeline.settings import CodeSettings, WorkerShards
    from phistill.stats import FitProgress

from .arguments import (
    COUNT_OR_AUTO,
    DURATION,
    FRACTION_OR_FILE,
    LOCATION,
    PATH,
    SHARE,
    TEACHER_BITS,
    ListOption,
    autocast_option,
    cache_argument,
    device_option,
    layout_options,
    source_options,
    teacher_option,
    teachers_option,
)
from .mistakes import refuse_image_mistakes, refuse_teacher_mistakes
from .verbosity import LOG, progress


@click.command()
@click.argument("images")
@click.option(
    "--cache",
    required=True,
    type=LOCATION,
    help="Cache to write: a folder, or s3://BUCKET/PREFIX.",
)
@teacher_option
@click.option(
    "--holdout",
    type=FRACTION_OR_FILE,
    metavar="FRACTION|FILE",
    help="Fraction of images held out, or a file of their ids, one per line.  [default: 0.05]",
)
@click.option("--seed", type=int, help="Of the row order and the split.  [default: 0]")
@click.option("--pixel-size", type=int, help="Side of the stored student pixels.  [default: 224]")
@click.option(
    "--view",
    "views",
    multiple=True,
    metavar="KIND[?flip=random&...]",
    help="A stored view: resize, center-crop or random-resized-crop; repeatable, several views of "
    "an image are stored as several rows (docs/images.md).  [default: resize]",
)
@click.option(
    "--background",
    type=click.IntRange(0, 255),
    nargs=3,
    metavar="R G B",
    help="Colour behind transparent pixels.  [default: 128 128 128]",
)
@click.option("--min-side", type=int, help="Reject images with a shorter side.  [default: 1]")
@layout_options
@click.option(
    "--bits",
    cls=ListOption,
    type=TEACHER_BITS,
    metavar="B|NAME=B,...",
    help="Store the patches of new teachers as codes of so many bits per channel, 0.25 to 8; of a "
    "pilot of images the codec is made (docs/compact.md).  [default: float16]",
)
@click.option(
    "--lost",
    "lost_share",
    type=SHARE,
    metavar="2%",
    help="In the place of --bits: the share of the variance that codes may lose.",
)
@click.option(
    "--pilot", "pilot_images", type=int, help="Training images of the pilot.  [default: 2,500]"
)
@device_option
@autocast_option
@click.option(
    "--batch-size",
    "rows_per_forward",
    type=COUNT_OR_AUTO,
    metavar="N|auto",
    help="Rows per forward pass of a new teacher, stored with it; auto measures what is fastest "
    "here.  [default: by the size of its input]",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Run the teachers through torch.compile: slower to start, other last bits.",
)
@click.option(
    "--channels-last", is_flag=True, help="That memory format: may be faster for convolutions."
)
@click.option(
    "--workers", "num_workers", type=int, help="Decoding workers.  [default: one per core]"
)
@click.option(
    "--decode",
    type=click.Choice(["auto", "threads", "processes"]),
    default="auto",
    show_default=True,
    help="How images are decoded; auto takes processes for 1,000 rows and more.",
)
@click.option(
    "--max-reject-frac",
    type=float,
    help="Stop when more than this fraction of the rows is rejected.  [default: 0.01, ten rejects "
    "always allowed]",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    type=DURATION,
    metavar="3h50m",
    help="Finish a shard and stop after this long, with exit code 143.",
)
@click.option(
    "--worker",
    metavar="r/R",
    help="Extract only the shards of worker r of R, from 0; others take the rest at the same time, "
    "here or elsewhere (docs/extraction-at-scale.md).  [default: what torchrun or srun say]",
)
@click.option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    help="Let the workers of a dask.distributed cluster do the work; they must see IMAGES and the "
    "cache under the same paths.",
)
@click.option(
    "--labels",
    "labels_file",
    type=PATH,
    metavar="FILE",
    help="Classes of the images: .json, .csv, .tsv or .parquet, from an image's id, its folder or "
    "its class number to a name (docs/images.md).",
)
@click.option(
    "--window",
    "window_tars",
    type=int,
    default=8,
    show_default=True,
    help="Tars from afar whose images are mixed in a new cache; twice as many are on the disk.",
)
@source_options
@click.option(
    "--fit",
    is_flag=True,
    help="Take the statistics in passing: fit-stats then has nothing to read, or to do.",
)
@click.option("--append", is_flag=True, help="Add images that the cache does not have.")
@click.option(
    "--add-views", is_flag=True, help="Add what the cache lacks of the list of every --view."
)
@click.option("--repair", is_flag=True, help="Check every byte; extract damaged shards again.")
def extract(
    images: str,
    cache: str,
    teachers: tuple[str, ...],
    holdout: float | Path | None,
    seed: int | None,
    pixel_size: int | None,
    views: tuple[str, ...],
    background: tuple[int, int, int] | None,
    min_side: int | None,
    shard_rows: int | None,
    file_bytes: int | None,
    compression: str | None,
    bits: float | dict[str, float] | None,
    lost_share: float | None,
    pilot_images: int | None,
    worker: str | None,
    window_tars: int,
    reading: dict[str, Any],
    **options: Any,
) -> None:
    """Run teachers over IMAGES once and cache their features.

    IMAGES is a folder, parquet tables, tars, a saved Hugging Face dataset, a text file with one
    path per line, or tars from afar: https://.../shard-{0000..0127}.tar, s3://... (docs/images.md).
    Run it again after an interruption, or with another --teacher: only what is missing is done.
    Without --teacher the cache's own teachers are finished.
    """
    refuse_image_mistakes(images)
    refuse_teacher_mistakes(teachers)
    from phistill.pipeline import CacheSettings, ExtractOptions
    from phistill.pipeline import extract as run
    from phistill.pipeline.decode.rgb import DecodeRules
    from phistill.pipeline.decode.views import View
    from phistill.pipeline.images.source import SourceOptions
    from phistill.report.extraction import summary_text
    from phistill.report.tables import statistics_text

    decode = None
    if background or min_side is not None:
        decode = DecodeRules(
            background=background or DecodeRules().background,
            min_side=DecodeRules().min_side if min_side is None else min_side,
        )
    options["source"] = SourceOptions(**reading, window_tars=window_tars)
    options["codes"] = _codes(bits, lost_share, pilot_images)
    options["holdout_file"] = holdout if isinstance(holdout, Path) else None
    shards = _worker_shards(worker, options)
    settings = CacheSettings(
        seed=seed,
        holdout=None if isinstance(holdout, Path) else holdout,
        pixel_size=pixel_size,
        views=tuple(View.parse(view) for view in views) or None,
        decode=decode,
        shard_rows=shard_rows,
        file_bytes=file_bytes,
        compression=compression,
    )
    title = f"extract, worker {shards}" if shards else "extract"
    last: ExtractProgress | None = None
    with progress(title, lines=options.get("local_rank") is not None) as bar:

        def show(at: ExtractProgress) -> None:
            nonlocal last
            last = at
            bar.event(at)

        report = run(
            images,
            cache,
            teachers,
            settings=settings,
            options=ExtractOptions(**options),
            on_progress=show,
        )
    click.echo(summary_text(report, images, shards, last))
    if shards and report.missing_shards and not report.out_of_time:
        return
    if report.out_of_time:
        click.echo("The time limit is reached; run the same command again to go on.", err=True)
        sys.exit(143)
    if report.statistics is None:
        click.echo(f"Next: phistill fit-stats {cache}")
        return
    click.echo(statistics_text(report.statistics))
    click.echo(f"Next: phistill train {cache} --out runs/phi-s")


def _codes(
    bits: float | dict[str, float] | None, lost_share: float | None, pilot_images: int | None
) -> CodeSettings | None:
    """None where features are stored as they are."""
    from phistill.errors import UsageError
    from phistill.pipeline.settings import CodeSettings
    from phistill.stats.compacting import PILOT_ROWS

    if bits is None and lost_share is None:
        if pilot_images is not None:
            raise UsageError("--pilot is for --bits or --lost: give one of them too.")
        return None
    pilot = PILOT_ROWS if pilot_images is None else pilot_images
    return CodeSettings(bits=bits, lost_share=lost_share, pilot_images=pilot)


def _worker_shards(worker: str | None, options: dict[str, Any]) -> WorkerShards | None:
    """The shards of ``--worker`` and of the launcher, put into the options and told."""
    import os

    from phistill.compute.launch import launched
    from phistill.pipeline.decode.shards import num_cores
    from phistill.pipeline.settings import WorkerShards

    launch = None if options["scheduler"] else launched(os.environ)
    shards = WorkerShards.parse(worker) if worker else None
    if launch is not None:
        shards = (shards or WorkerShards(0, 1)).split(launch.rank, launch.world)
        options["local_rank"] = launch.local_rank
        if options["num_workers"] is None:
            options["num_workers"] = max(1, num_cores() // launch.num_local)
        LOG.info("%s: this is worker %s.", launch, shards)
    options["worker"] = shards
    return shards


@click.command("fit-stats")
@cache_argument
@teachers_option
@click.option("--exact", is_flag=True, help="Float64 products: error 1e-12, not 2e-6.")
@click.option("--tokens-per-image", type=int, help="Tokens taken of each image.  [default: all]")
@click.option("--max-images", type=int, help="Training rows taken.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the two choices above.")
@click.option("--scheduler", help="Address of a dask.distributed scheduler, tcp://...")
@click.option("--repair", is_flag=True, help="Check every stored file; make damaged ones again.")
def fit_stats(cache: str, teachers: list[str] | None, **options: Any) -> None:
    """Compute the moments of every teacher and fit PHI-S.

    A killed run goes on where it stopped, and a cache that grew costs its new shards only.
    """
    from phistill import cache as store
    from phistill.report.tables import statistics_text
    from phistill.stats import fit_stats as run

    done: list[FitProgress] = []
    with progress("fit-stats") as bar:

        def show(at: FitProgress) -> None:
            done[:] = [at]
            bar.event(at)

        rows = run(store.open(cache), teachers=teachers, progress=show, **options)
    if not done:
        click.echo(f"{cache}: the statistics are those of its rows: nothing to do.")
    click.echo(statistics_text(rows))
    click.echo(f"Next: phistill train {cache} --out runs/phi-s")


@click.command()
@click.option("--out", type=PATH, default="demo-out", show_default=True, help="Folder to make.")
def demo(out: Path) -> None:
    """Run the whole method on bundled images and teachers."""
    from phistill.report.extras import require_libraries

    require_libraries()
    from phistill.demo.run import demo as run

    run(out, say=click.echo, progress=progress)
