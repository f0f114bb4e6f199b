"""``extract``: stage one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from phistill.pipeline import ExtractProgress
    from phistill.pipeline.workers import Share

from .arguments import cache_path, count_or_auto, fraction_or_file, seconds_of, teacher_option


@click.command()
@click.argument("images")
@click.option(
    "--cache",
    required=True,
    type=cache_path,
    help="Cache to write: a folder, or s3://BUCKET/PREFIX.",
)
@teacher_option
@click.option(
    "--holdout",
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
@click.option("--shard-rows", type=int, help="Rows per shard, a power of two.  [default: by size]")
@click.option("--compression", metavar="zstd:3", help="Compress every array.  [default: none]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--autocast",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Arithmetic of the teachers.  [default: bfloat16 on CUDA, else float32]",
)
@click.option(
    "--batch-size",
    "rows_per_forward",
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
    type=click.Path(path_type=Path),
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
@click.option("--append", is_flag=True, help="Add images that the cache does not have.")
@click.option(
    "--add-views", is_flag=True, help="Add what the cache lacks of the list of every --view."
)
@click.option("--repair", is_flag=True, help="Check every byte; extract damaged shards again.")
def extract(
    images: str,
    cache: str,
    teachers: tuple[str, ...],
    holdout: str | None,
    seed: int | None,
    pixel_size: int | None,
    views: tuple[str, ...],
    background: tuple[int, int, int] | None,
    min_side: int | None,
    shard_rows: int | None,
    compression: str | None,
    time_limit: str | None,
    worker: str | None,
    **options: Any,
) -> None:
    """Run teachers over IMAGES once and cache their features.

    IMAGES is a folder, parquet tables, tars, a saved Hugging Face dataset, a text file with one
    path per line, or tars from afar: https://.../shard-{0000..0127}.tar, s3://... (docs/images.md).
    Run it again after an interruption, or with another --teacher: only what is missing is done.
    Without --teacher the cache's own teachers are finished.
    """
    from phistill.errors import counted
    from phistill.pipeline import CacheSettings, ExtractOptions
    from phistill.pipeline import extract as run
    from phistill.pipeline.decode.rgb import DecodeRules
    from phistill.pipeline.decode.views import View
    from phistill.pipeline.teachers.licences import licences_text
    from phistill.pipeline.workers import who_misses
    from phistill.report.extract_bar import done_images, progress_note
    from phistill.report.terminal import bytes_text, duration_text, progress_bar

    decode = None
    if background or min_side is not None:
        decode = DecodeRules(
            background=background or DecodeRules().background,
            min_side=DecodeRules().min_side if min_side is None else min_side,
        )
    fraction, options["holdout_file"] = fraction_or_file(holdout)
    options["time_limit_s"] = seconds_of(time_limit)
    options["rows_per_forward"] = count_or_auto("--batch-size", options["rows_per_forward"])
    share = _take_share(worker, options)
    settings = CacheSettings(
        seed=seed,
        holdout=fraction,
        pixel_size=pixel_size,
        views=tuple(View.parse(view) for view in views) or None,
        decode=decode,
        shard_rows=shard_rows,
        compression=compression,
    )
    title = f"extract, worker {share}" if share else "extract"
    last: list[ExtractProgress] = []
    with progress_bar(title, lines=options.get("local_rank") is not None) as bar:

        def show(at: ExtractProgress) -> None:
            last[:] = [at]
            bar(done_images(at), at.num_images, progress_note(at))

        report = run(
            images,
            cache,
            teachers,
            settings=settings,
            options=ExtractOptions(**options),
            on_progress=show,
            on_notice=lambda text: click.echo(text, err=True),
        )
    found = report.cache
    names = ", ".join(found.teachers)
    who = f"{cache}, worker {share}" if share else str(cache)
    if report.num_shards:
        click.echo(
            f"{who}: {counted(report.num_shards, 'shard')}, "
            f"{bytes_text(report.written_bytes)} written in "
            f"{duration_text(report.elapsed_s)}{_speed(last)}."
        )
    elif not report.out_of_time:
        click.echo(f"{who}: nothing to do." if share else f"{cache} is complete: nothing to do.")
    if share and report.missing_shards and not report.out_of_time:
        command = f"phistill extract {images} --cache {cache}"
        holders = found.files.holders()
        click.echo("\n".join(who_misses(report.missing_shards, share, holders, command)))
        return
    click.echo(f"{counted(found.index().num_rows, 'row')}, teachers {names}.")
    click.echo(licences_text({name: found.teacher(name).licence for name in found.teachers}))
    _print_rejects(report.rejects, cache)
    if report.num_repaired:
        click.echo(f"Damaged, and extracted again: {counted(report.num_repaired, 'shard')}.")
    if report.num_new_images:
        new = counted(report.num_new_images, "image")
        click.echo(f"Not in it: {new} of {images}. Add what is new with --append.")
    if report.out_of_time:
        click.echo("The time limit is reached; run the same command again to go on.", err=True)
        sys.exit(143)
    click.echo(f"Next: phistill fit-stats {cache}")


def _take_share(worker: str | None, options: dict[str, Any]) -> Share | None:
    """The share of ``--worker`` and of the launcher, put into the options and told."""
    import os

    from phistill.pipeline.decode.shards import num_cores
    from phistill.pipeline.workers import Share, launched

    launch = None if options["scheduler"] else launched(os.environ)
    share = Share.parse(worker) if worker else None
    if launch is not None:
        share = (share or Share(0, 1)).split(launch.rank, launch.world)
        options["local_rank"] = launch.local_rank
        options["num_workers"] = options["num_workers"] or max(1, num_cores() // launch.num_local)
        click.echo(f"{launch}: this is worker {share}.", err=True)
    options["share"] = share
    return share


def _speed(last: list[ExtractProgress]) -> str:
    """How fast it was, for the line at the end; nothing where nothing was computed."""
    if not last or not last[0].computed_rows:
        return ""
    busy = last[0].busy
    known = "" if busy is None else f", with the teachers busy {busy:.0%} of the time"
    return f" (once the teachers ran, {last[0].images_per_s:,.1f} images/s{known})"


def _print_rejects(rejects: tuple[tuple[str, str], ...], cache: str) -> None:
    if rejects:
        click.echo(f"{len(rejects)} rejected:")
        click.echo(rejects_text(rejects[:10]))
    if len(rejects) > 10:
        click.echo(f"  and {len(rejects) - 10} more: phistill inspect {cache} --rejects")


def rejects_text(rejects: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"  {name}: {reason}" for name, reason in rejects)
