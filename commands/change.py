"""Changing what a cache holds: merging, taking down, leaving out."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import LOCATION, TEACHER_BITS, ListOption, cache_argument, read_lines
from .verbosity import progress


@click.command()
@cache_argument
@click.argument("other", type=LOCATION)
def merge(cache: str, other: str) -> None:
    """Copy into CACHE the shards that OTHER has.

    OTHER is another worker's copy of the same cache, or one of other images with equal settings.
    """
    from phistill import cache as store
    from phistill.cache.upkeep.merge import merge as run
    from phistill.errors import counted
    from phistill.stats.fit.kept_sums import merge_kept_sums

    opened = store.open(cache)
    with opened.writing():
        num_shards = run(opened, store.open(other), reuse=merge_kept_sums)
    copied = f"{counted(num_shards, 'shard')} of pixels and teachers copied"
    click.echo(f"{cache}: {copied if num_shards else 'nothing new to copy'} from {other}.")
    click.echo(f"Next: phistill fit-stats {cache}")


@click.command("remove-teacher")
@cache_argument
@click.argument("name")
def remove_teacher(cache: str, name: str) -> None:
    """Delete a teacher and all its features."""
    from phistill import cache as store
    from phistill.cache.upkeep.remove import remove_teacher as run

    opened = store.open(cache)
    with opened.writing():
        run(opened, name)
    click.echo(f"{cache}: teacher {name} is deleted; {', '.join(opened.teachers) or 'none'} left.")


@click.command("remove-images")
@cache_argument
@click.argument("ids", nargs=-1)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Further ids, one per line.",
)
@click.option("--with-duplicates", is_flag=True, help="Also images with the same bytes.")
def remove_images(
    cache: str, ids: tuple[str, ...], path: Path | None, with_duplicates: bool
) -> None:
    """Take down images by id.

    Their rows are never given out again; their bytes go with compact. Other images with the same
    bytes are named. Run fit-stats afterwards.

    \b
    phistill remove-images my.cache photos/0017.jpg photos/0018.jpg --with-duplicates
    phistill remove-images my.cache --file takedown.txt
    """
    from phistill import cache as store
    from phistill.cache.upkeep.remove import duplicates, remove_images
    from phistill.errors import UsageError, counted

    wanted = [*ids, *(read_lines(path) if path else [])]
    if not wanted:
        raise UsageError("say which images: ids, or --file with one per line.")
    opened = store.open(cache)
    with opened.writing():
        same = duplicates(opened, wanted)
        num_rows = remove_images(opened, [*wanted, *same] if with_duplicates else wanted)
    click.echo(f"{cache}: {counted(num_rows, 'row')} removed.")
    for name, original in list(same.items())[:10]:
        click.echo(f"  {name} has the same bytes as {original}")
    if len(same) > 10:
        click.echo(f"  and {len(same) - 10} more")
    if same and with_duplicates:
        click.echo(f"Removed with it: {counted(len(same), 'duplicate')}.")
    elif same:
        left = counted(len(same), "duplicate")
        click.echo(f"Still in it: {left}. Take duplicates down too with --with-duplicates.")
    click.echo(f"Next: phistill fit-stats {cache}")
    click.echo(f"The bytes stay until: phistill compact {cache} OUT --drop-removed")


@click.command()
@cache_argument
@click.argument("out", type=LOCATION)
@click.option(
    "--bits",
    cls=ListOption,
    type=TEACHER_BITS,
    metavar="B|NAME=B,...",
    help="Store patches as codes of so many bits per channel, 0.25 to 8 (docs/compact.md).",
)
@click.option("--drop-removed", is_flag=True, help="Leave out what remove-images took down.")
def compact(
    cache: str, out: str, bits: float | dict[str, float] | None, drop_removed: bool
) -> None:
    """Write a smaller copy of a cache: patches as codes, or without removed images.

    CACHE is not changed. Statistics stay those of the features. Run it again after an
    interruption to go on.

    \b
    phistill compact my.cache small.cache --bits 2
    phistill compact my.cache small.cache --bits dino=2,sam=0.5
    phistill compact my.cache my-clean.cache --drop-removed
    """
    from phistill import cache as store
    from phistill.errors import UsageError, counted
    from phistill.report.inspection import codes_text
    from phistill.report.terminal import bytes_text
    from phistill.stats.compacting import compact_cache
    from phistill.stats.fit.loading import is_fitted

    if bits is None and not drop_removed:
        raise UsageError("say what makes it smaller: --bits 2, or --drop-removed.")
    source = store.open(cache)
    with progress("compact") as bar:
        report = compact_cache(
            source, out, bits=bits, drop_removed=drop_removed, progress=bar.bytes
        )
    if not report.num_shards:
        click.echo(f"{out} is complete: nothing to do.")
    else:
        click.echo(
            f"{out}: {bytes_text(report.num_bytes)} written, "
            f"{counted(report.num_statistics, 'file')} of statistics taken over."
        )
    if text := codes_text(report.cache):
        click.echo(text)
    if drop_removed:
        click.echo(f"{cache} still holds the removed images; delete it when {out} is good.")
    following = f"train {out} --out runs/phi-s" if is_fitted(report.cache) else f"fit-stats {out}"
    click.echo(f"Next: phistill {following}")


@click.command()
@cache_argument
def pack(cache: str) -> None:
    """Put commit records and facts of images into packs.

    A finished extraction has done it. It is for a cache whose extraction was stopped: one file is
    opened faster than thousands. Nothing that the cache says changes.
    """
    from phistill import cache as store
    from phistill.cache.upkeep.pack import pack as run
    from phistill.errors import counted

    opened = store.open(cache)
    with opened.writing():
        report = run(opened, everything=True)
    if not report.num_files:
        click.echo(f"{cache}: everything is packed.")
        return
    click.echo(
        f"{cache}: {counted(report.num_files, 'file')} of single shards went into "
        f"{counted(report.num_packs, 'pack')}."
    )
