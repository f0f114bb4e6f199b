"""What a person looks at: the report and the demo."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import cache_argument


@click.command()
@cache_argument
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True
)
def report(cache: Path, runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained page: statistics, learning curves, PCA maps."""
    from phistill.report import report as write

    click.echo(f"Written: {write(cache, runs, out)}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
def demo(out: Path) -> None:
    """The whole method on bundled images and teachers, with a report to look at."""
    from phistill.demo.run import demo as run

    run(out, say=click.echo)
