"""Looking: what a cache holds, whether it is whole, what one would cost, what is wrong here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .arguments import (
    LOCATION,
    PATH,
    autocast_option,
    cache_argument,
    device_option,
    json_option,
    source_options,
    teacher_option,
)
from .mistakes import refuse_image_mistakes, refuse_no_run, refuse_teacher_mistakes
from .verbosity import progress


@click.command()
@cache_argument
@json_option
@click.option("--rejects", "show_rejects", is_flag=True, help="List every rejected image.")
def inspect(cache: str, as_json: bool, show_rejects: bool) -> None:
    """Say what a cache holds."""
    import json

    from phistill import cache as store
    from phistill.pipeline import rejects
    from phistill.report.extraction import rejects_text
    from phistill.report.inspection import describe, render

    opened = store.open(cache)
    if show_rejects:
        rejected = rejects(opened)
        click.echo(json.dumps(dict(rejected), indent=2) if as_json else rejects_text(rejected))
        return
    facts = describe(opened)
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))


@click.command()
@cache_argument
@click.argument("images", required=False)
@click.option(
    "--live", type=click.IntRange(min=1), help="Run each teacher again on this many rows of IMAGES."
)
@device_option
@source_options
def verify(
    cache: str, images: str | None, live: int | None, device: str, reading: dict[str, Any]
) -> None:
    """Check every byte of features, pixels, index, records and statistics.

    Exits with 1 when anything is damaged or unfinished, and names teacher, shard and rows.

    \b
    phistill verify my.cache
    phistill verify my.cache photos/ --live 8
    """
    from phistill import cache as store
    from phistill.cache.upkeep.verify import verify as check
    from phistill.errors import UsageError
    from phistill.report.verification import render
    from phistill.stats.fit.kept_sums import lost_sums

    if live is not None and images is None:
        raise UsageError("--live needs the images: phistill verify CACHE IMAGES --live 8.")
    if live is None and images is not None:
        raise UsageError(f"{images} is for teachers that run again: add --live 8, or leave it out.")
    opened = store.open(cache)
    with progress("verify") as bar:
        report = check(opened, progress=bar.bytes)
    notes = lost_sums(opened) if not report.damaged else ()  # records that are read are whole
    click.echo(render(report, opened, notes))
    if report.findings:
        sys.exit(1)
    if live is None:
        return
    from phistill.pipeline.images.source import SourceOptions
    from phistill.pipeline.recheck import recheck

    for name in opened.teachers:
        if opened.teacher(name).is_imported:
            click.echo(f"{name}: imported, so there is nothing to run again.")
    agree = True
    for compared in recheck(opened, str(images), live, device, SourceOptions(**reading)):
        click.echo(str(compared))
        agree = agree and compared.agrees
    if not agree:
        sys.exit(1)


@click.command()
@cache_argument
@click.argument("runs", nargs=-1, type=PATH)
@click.option("--out", type=PATH, default="report.html", show_default=True, help="The page.")
def report(cache: str, runs: tuple[Path, ...], out: Path) -> None:
    """Write one page to look at: is the student good, which run is best, what next.

    RUNS are run folders, or the folder of a sweep.

    \b
    phistill report my.cache runs/phi-s runs/raw
    phistill report my.cache runs/ablation --out ablation.html
    """
    from phistill import cache as store
    from phistill.errors import UsageError
    from phistill.report.extras import require_libraries

    require_libraries()
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}.")
    store.open(cache)
    for run in runs:
        if not any(run.glob("*/config.json")):
            refuse_no_run(run)
    from phistill.report import report as write

    with progress("report") as bar:
        path = write(cache, runs, out, progress=bar)
    click.echo(f"Written: {path}")


@click.command()
@click.argument("images")
@teacher_option
@click.option("--cache", type=LOCATION, help="Where it would lie.")
@click.option("--pixel-size", type=int, help="Side of the stored student pixels.  [default: 224]")
@click.option(
    "--precision",
    "num_precision",
    type=click.IntRange(min=10),
    metavar="IMAGES",
    help="Measure on so many what patches lose in float16, bfloat16 and a few bits.",
)
@click.option(
    "--picture", type=PATH, help="With --precision: a picture (svg, png) of where codes spend bits."
)
@device_option
@click.option("--epochs", type=float, default=20.0, show_default=True, help="Of one training run.")
@click.option("--runs", "num_runs", type=int, default=1, show_default=True, help="Training runs.")
@source_options
@json_option
def plan(
    images: str,
    teachers: tuple[str, ...],
    cache: str | None,
    pixel_size: int | None,
    num_precision: int | None,
    picture: Path | None,
    device: str,
    epochs: float,
    num_runs: int,
    reading: dict[str, Any],
    as_json: bool,
) -> None:
    """Say what a cache will cost, before it is made.

    Bytes, hours (measured on a few images), the read rate a trainer needs, and after how many
    epochs or runs the cache is cheaper than live teachers.
    """
    import json

    refuse_image_mistakes(images)
    refuse_teacher_mistakes(teachers)
    from phistill.pipeline import CacheSettings
    from phistill.pipeline.images.source import SourceOptions
    from phistill.report.costs import render
    from phistill.report.plan import plan as measure

    planned = measure(
        images,
        teachers,
        cache=cache,
        settings=CacheSettings(pixel_size=pixel_size),
        device=device,
        epochs=epochs,
        num_runs=num_runs,
        num_precision=num_precision or 0,
        picture=picture,
        source_options=SourceOptions(**reading),
    )
    click.echo(json.dumps(planned.to_dict(), indent=2) if as_json else render(planned))


@click.command("check-teacher")
@click.argument("teacher", metavar="SOURCE:MODEL[?KEY=VALUE&...]")
@device_option
@autocast_option
def check_teacher(teacher: str, device: str, autocast: str | None) -> None:
    """Run a teacher on two images and show what it gives."""
    refuse_teacher_mistakes([teacher])
    from phistill.pipeline.teachers.check import check_teacher as check
    from phistill.pipeline.teachers.check import render

    report = check(teacher, device, autocast=autocast)
    click.echo(render(report))
    if report.problems:
        sys.exit(1)


@click.command()
@click.option("--cache", type=LOCATION, help="A cache to look at too.")
@click.option("--run", type=PATH, help="A run to look at too.")
@click.option("--network", is_flag=True, help="Ask the model hub whether it answers.")
@json_option
def doctor(cache: str | None, run: Path | None, network: bool, as_json: bool) -> None:
    """Say what is installed, what is wrong, and what to do."""
    from phistill.report.doctor.examination import doctor as examine
    from phistill.report.doctor.findings import render, to_json

    findings = examine(cache, run, network=network)
    click.echo(to_json(findings) if as_json else render(findings))
    if any(finding.state == "problem" for finding in findings):
        sys.exit(1)
