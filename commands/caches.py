"""Looking at a cache, checking it, changing what it holds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .arguments import cache_argument, cache_path, read_lines
from .extracting import rejects_text


@click.command()
@cache_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--rejects", "show_rejects", is_flag=True, help="List every rejected image.")
def inspect(cache: str, as_json: bool, show_rejects: bool) -> None:
    """Say what a cache holds."""
    import json

    from phistill import cache as store
    from phistill.pipeline import rejects
    from phistill.report.inspection import describe, render

    opened = store.open(cache)
    if show_rejects:
        found = rejects(opened)
        click.echo(json.dumps(dict(found), indent=2) if as_json else rejects_text(found))
        return
    facts = describe(opened)
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))


@click.command()
@cache_argument
@click.argument("images", required=False)
@click.option(
    "--live", type=click.IntRange(min=1), help="Run each teacher again on this many rows of IMAGES."
)
@click.option("--device", default="auto", show_default=True, help="For --live.")
def verify(cache: str, images: str | None, live: int | None, device: str) -> None:
    """Check every byte of features, pixels, index, records and statistics.

    Exits with 1 when anything is damaged or unfinished, and names teacher, shard and rows.

    \b
    phistill verify my.cache
    phistill verify my.cache photos/ --live 8
    """
    from phistill import cache as store
    from phistill.cache.upkeep.verify import verify as check
    from phistill.errors import UsageError, counted
    from phistill.report.terminal import bytes_text, progress_bar

    if live is not None and images is None:
        raise UsageError("--live needs the images: phistill verify CACHE IMAGES --live 8.")
    opened = store.open(cache)
    with progress_bar("verify") as bar:
        report = check(opened, progress=lambda done, total: bar(done, total, bytes_text(total)))
    for finding in report.findings:
        click.echo(str(finding))
    checked = f"{counted(report.num_files, 'file')}, {bytes_text(report.num_bytes)} checked"
    if not report.findings:
        click.echo(f"{cache} is whole: {checked}.")
        if live is not None and not _agrees_live(cache, images, live, device):
            sys.exit(1)
        return
    if any(not finding.owner for finding in report.damaged):
        click.echo(
            f"{len(report.damaged)} damaged; {checked}. What concerns the cache as a whole cannot "
            "be extracted again: restore that file from a copy, or make a new cache."
        )
    elif report.damaged:
        click.echo(f"{len(report.damaged)} damaged; {checked}.")
        features = {finding.owner for finding in report.damaged if not finding.statistics}
        imported = {name for name in opened.teachers if opened.teacher(name).is_imported}
        if features - imported:
            click.echo(f"Mend it with: phistill extract IMAGES --cache {cache} --repair")
        if features & imported:
            click.echo(
                f"Mend {', '.join(sorted(features & imported))} with: phistill import-features "
                f"FEATURES --cache {cache} --repair"
            )
        if any(finding.statistics for finding in report.damaged):
            click.echo(f"Mend statistics with: phistill fit-stats {cache} --repair")
    else:
        click.echo(
            f"Nothing is damaged; unfinished: {counted(len(report.findings), 'shard')}. {checked}."
        )
        for command in dict.fromkeys(opened.finishing(f.owner) for f in report.findings):
            click.echo(f"Finish with: {command}")
    sys.exit(1)


def _agrees_live(cache: str, images: str | None, num_rows: int, device: str) -> bool:
    """Print how far each teacher is from what is stored; False when one is another teacher."""
    from phistill import cache as store
    from phistill.pipeline.extraction import stored_runner
    from phistill.pipeline.images.open_source import opened
    from phistill.pipeline.recheck import compare_live, sample_rows

    assert images is not None, "verify checked it"
    found, agree = store.open(cache), True
    with opened(images) as source:
        for name in found.teachers:
            if found.teacher(name).is_imported:
                click.echo(f"{name}: imported, so there is nothing to run again.")
                continue
            rows = sample_rows(found, name, num_rows)
            report = compare_live(found, source, stored_runner(found, name, device), rows)
            click.echo(str(report))
            agree = agree and report.agrees
    return agree


@click.command()
@cache_argument
@click.argument("other", type=cache_path)
def merge(cache: str, other: str) -> None:
    """Copy into CACHE the shards that OTHER has.

    OTHER is another worker's copy of the same cache, or one of other images with equal settings.
    """
    from phistill import cache as store
    from phistill.cache.upkeep.growth import merge as run
    from phistill.errors import counted

    opened = store.open(cache)
    with opened.writing():
        num_shards = run(opened, store.open(other))
    click.echo(f"{cache}: {counted(num_shards, 'shard')} copied from {other}.")
    click.echo(f"Next: phistill fit-stats {cache}")


@click.command("remove-teacher")
@cache_argument
@click.argument("name")
def remove_teacher(cache: str, name: str) -> None:
    """Delete a teacher and all its features."""
    from phistill import cache as store
    from phistill.cache.upkeep.growth import remove_teacher as run

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
    from phistill.cache.upkeep import growth
    from phistill.errors import UsageError, counted

    wanted = [*ids, *(read_lines(path) if path else [])]
    if not wanted:
        raise UsageError("say which images: ids, or --file with one per line.")
    opened = store.open(cache)
    with opened.writing():
        same = growth.duplicates(opened, wanted)
        num_rows = growth.remove_images(opened, [*wanted, *same] if with_duplicates else wanted)
    click.echo(f"{cache}: {counted(num_rows, 'row')} removed.")
    for name, of in list(same.items())[:10]:
        click.echo(f"  {name} has the same bytes as {of}")
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
@click.argument("out", type=cache_path)
@click.option("--drop-removed", is_flag=True, help="Leave out what remove-images took down.")
def compact(cache: str, out: str, drop_removed: bool) -> None:
    """Write a smaller copy of a cache.

    CACHE is not changed. Shards that lost no image are copied as they are and keep their
    statistics. Run it again after an interruption to go on.

    \b
    phistill compact my.cache my-clean.cache --drop-removed
    """
    from phistill import cache as store
    from phistill.errors import UsageError, counted
    from phistill.pipeline.compact import compact as run
    from phistill.report.terminal import bytes_text, progress_bar

    if not drop_removed:
        raise UsageError("say what to leave out: --drop-removed.")
    with progress_bar("compact") as bar:
        report = run(
            store.open(cache), out, progress=lambda done, total: bar(done, total, bytes_text(total))
        )
    if not report.num_shards:
        click.echo(f"{out} is complete: nothing to do.")
    else:
        click.echo(
            f"{out}: {counted(report.num_shards, 'shard')}, {bytes_text(report.num_bytes)} "
            f"written, {counted(report.num_statistics, 'file')} of statistics taken over."
        )
    click.echo(f"Next: phistill fit-stats {out}")
    click.echo(f"{cache} still holds the removed images; delete it when {out} is good.")
