"""Caches that travel: to a disk near by, and to and from other formats."""

from __future__ import annotations

from typing import Any

import click

from .arguments import bytes_of, cache_argument, cache_path, names_of


@click.command()
@cache_argument
@click.argument("dest", type=cache_path)
@click.option("--teachers", help="Comma-separated; all by default.")
@click.option(
    "--split",
    type=click.Choice(["train", "heldout", "all"]),
    default="all",
    show_default=True,
    help="Only these rows, in shards of their own.",
)
@click.option("--rows", "num_rows", type=click.IntRange(min=1), help="Only so many rows.")
@click.option("--max-bytes", metavar="200G", help="Only as many rows as fit.")
@click.option("--workers", type=click.IntRange(min=1), default=4, show_default=True)
def stage(
    cache: str,
    dest: str,
    teachers: str | None,
    split: Any,
    num_rows: int | None,
    max_bytes: str | None,
    workers: int,
) -> None:
    """Copy what a run needs of a cache to DEST, a disk near by.

    Every file is checked by its sha256 on the way. Run it again to go on after an interruption, or
    when the cache has grown: only what is missing is copied.

    \\b
    phistill stage /nfs/my.cache /local/my.cache --teachers dino
    phistill stage my.cache small.cache --max-bytes 20G
    """
    from phistill import cache as store
    from phistill.cache.staging import Selection
    from phistill.cache.staging import stage as run
    from phistill.report.terminal import bytes_text, progress_bar
    from phistill.stats.carry import carry_statistics

    source = store.open(cache)
    selection = Selection(
        teachers=tuple(names_of(teachers) or ()),
        split=split,
        num_rows=num_rows or 0,
        max_bytes=bytes_of("--max-bytes", max_bytes),
    )
    with progress_bar("stage") as bar:
        report = run(
            source,
            dest,
            selection,
            workers=workers,
            progress=lambda done, total: bar(done, total, bytes_text(total)),
        )
    staged = report.cache
    if not selection.is_whole and split != "heldout":
        with staged.writing():
            carry_statistics(source, staged)
    if report.num_shards or report.num_statistics:
        click.echo(f"{dest}: {report.num_shards} shards, {bytes_text(report.num_bytes)} copied.")
    else:
        click.echo(f"{dest} is complete: nothing to do.")
    click.echo(f"{staged.index().num_rows:,} rows, teachers {', '.join(staged.teachers)}.")
    if selection.is_whole:
        click.echo(f"Next: phistill train {dest} --out runs/phi-s")
    elif split != "heldout":
        click.echo(f"Next: phistill fit-stats {dest}")
