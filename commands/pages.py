"""What a person looks at: the report and the demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .arguments import cache_argument, cache_path, teacher_option


@click.command()
@cache_argument
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True
)
def report(cache: str, runs: tuple[Path, ...], out: Path) -> None:
    """Write one page to look at: statistics, curves, PCA maps."""
    from phistill.report import report as write
    from phistill.report.terminal import progress_bar

    with progress_bar("report") as bar:
        path = write(cache, runs, out, progress=bar)
    click.echo(f"Written: {path}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
def demo(out: Path) -> None:
    """Run the whole method on bundled images and teachers."""
    from phistill.demo.run import demo as run

    run(out, say=click.echo)


@click.command()
@click.argument("images")
@teacher_option
@click.option("--cache", type=cache_path, help="Where it would lie.")
@click.option("--pixel-size", type=int, help="Side of the stored student pixels.  [default: 224]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--epochs", type=float, default=20.0, show_default=True, help="Of one training run.")
@click.option("--runs", "num_runs", type=int, default=1, show_default=True, help="Training runs.")
def plan(
    images: str,
    teachers: tuple[str, ...],
    cache: str | None,
    pixel_size: int | None,
    device: str,
    epochs: float,
    num_runs: int,
) -> None:
    """Say what a cache will cost, before it is made.

    Bytes, hours (measured on a few images), the read rate a trainer needs, and after how many
    epochs or runs the cache is cheaper than live teachers.
    """
    from phistill.pipeline import CacheSettings
    from phistill.report.plan import plan as measure
    from phistill.report.plan import render

    found = measure(
        images,
        teachers,
        cache=cache,
        settings=CacheSettings(pixel_size=pixel_size),
        device=device,
        epochs=epochs,
        num_runs=num_runs,
        say=lambda text: click.echo(text, err=True),
    )
    click.echo(render(found))


@click.command()
@click.option("--cache", type=cache_path, help="A cache to look at too.")
@click.option("--run", type=click.Path(path_type=Path), help="A run to look at too.")
@click.option("--network", is_flag=True, help="Ask the model hub whether it answers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(cache: str | None, run: Path | None, network: bool, as_json: bool) -> None:
    """Say what is installed, what is wrong, and what to do."""
    from phistill.report.doctor import doctor as examine
    from phistill.report.doctor import render, to_json

    findings = examine(cache, run, network=network)
    click.echo(to_json(findings) if as_json else render(findings))
    if any(finding.state == "problem" for finding in findings):
        sys.exit(1)


@click.command("check-teacher")
@click.argument("teacher", metavar="SOURCE:MODEL[?KEY=VALUE&...]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--autocast", type=click.Choice(["float32", "bfloat16", "float16"]))
def check_teacher(teacher: str, device: str, autocast: str | None) -> None:
    """Run a teacher on two images and show what it gives."""
    from phistill.pipeline.teachers.check import check_teacher as check
    from phistill.pipeline.teachers.check import render

    report = check(teacher, device, autocast=autocast)
    click.echo(render(report))
    if report.problems:
        sys.exit(1)
