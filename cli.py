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
            number = getattr(error, "signal_number", 0)
            sys.exit(128 + number if number else 2 if isinstance(error, UsageError) else 1)


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
@click.option(
    "--batch-size", "rows_per_forward", type=int, help="Rows per forward pass of a new teacher."
)
@click.option(
    "--workers", "num_workers", type=int, help="Decoding workers.  [default: one per core]"
)
@click.option(
    "--max-reject-frac",
    type=float,
    default=0.01,
    show_default=True,
    help="Stop when more than this fraction of the rows is rejected.",
)
@click.option("--time-limit", metavar="3h50m", help="Finish a shard and stop after this long.")
@click.option("--append", is_flag=True, help="Add images that the cache does not have.")
@click.option("--repair", is_flag=True, help="Check every byte; extract damaged shards again.")
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
    time_limit: str | None,
    **options: Any,
) -> None:
    """Run teachers over IMAGES once and cache their features.

    IMAGES is a folder, a parquet file with an image column, or a text file with one path per line.
    Run it again after an interruption, or with another --teacher: only what is missing is done.
    """
    from phistill.pipeline import CacheSettings, ExtractOptions, ExtractProgress
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
    options["time_limit_s"] = _seconds(time_limit)
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
            options=ExtractOptions(**options),
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
    _print_rejects(report.rejects, cache)
    if report.num_repaired:
        click.echo(f"{report.num_repaired} shards were damaged and are extracted again.")
    if report.num_new_images:
        click.echo(f"{report.num_new_images} images of {images} are not in it: --append adds them.")
    if report.out_of_time:
        click.echo("The time limit is reached; run the same command again to go on.", err=True)
        sys.exit(143)
    click.echo(f"Next: phistill fit-stats {cache}")


def _print_rejects(rejects: tuple[tuple[str, str], ...], cache: Path) -> None:
    if rejects:
        click.echo(f"{len(rejects)} rejected:")
        click.echo(_rejects_text(rejects[:10]))
    if len(rejects) > 10:
        click.echo(f"  and {len(rejects) - 10} more: phistill inspect {cache} --rejects")


def _rejects_text(rejects: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"  {name}: {reason}" for name, reason in rejects)


@main.command("fit-stats")
@_cache_argument
@click.option("--teachers", help="Comma-separated; all by default.")
@click.option("--exact", is_flag=True, help="Float64 products instead of float32 ones.")
@click.option("--tokens-per-image", type=int, help="Use this many random tokens of each image.")
@click.option("--max-images", type=int, help="Use this many random images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the subsampling.")
@click.option("--trim", type=float, default=0.0, help="Leave out this fraction of outlier tokens.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or a torch device.")
@click.option("--workers", type=int, help="Processes; threads of this one by default.")
@click.option("--scheduler", help="Address of a dask.distributed scheduler, tcp://...")
def fit_stats(cache: Path, teachers: str | None, **options: Any) -> None:
    """Compute the moments of every teacher and fit PHI-S.

    A killed run goes on where it stopped, and a cache that grew costs its new shards only.
    """
    from phistill import cache as store
    from phistill.report.terminal import bytes_text, progress_bar
    from phistill.stats import fit_stats as run
    from phistill.stats.schedule import FitProgress
    from phistill.stats.table import render_notes, render_table

    with progress_bar("fit-stats") as bar:

        def show(at: FitProgress) -> None:
            bar(at.done_bytes, at.total_bytes, f"{at.array}, {bytes_text(at.total_bytes)}")

        rows = run(store.open(cache), teachers=_names(teachers), progress=show, **options)
    click.echo(render_table(rows))
    for note in render_notes(rows):
        click.echo(note)
    click.echo(f"Next: phistill train {cache} --out runs/phi-s")


@main.command()
@_cache_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="TOML of settings.")
@click.option("--normalizer", help="Of the patch targets.  [default: phi-s]")
@click.option("--teachers", help="Comma-separated; all of the cache by default.")
@click.option("--student", help="A timm model.  [default: vit_small_patch16_224]")
@click.option("--epochs", type=float, help="Passes over the training rows.  [default: 20]")
@click.option("--batch-size", "rows_per_forward", type=int, help="Rows per step.  [default: 128]")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 0.001]")
@click.option("--seed", type=int, help="Of weights and augmentation.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda, ...  [default: auto]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting (docs/training.md), value as in TOML; repeatable.",
)
def train(
    cache: Path,
    out: Path,
    config: Path | None,
    teachers: str | None,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a student from the cache alone: no teacher, no images.

    Run it again after an interruption to go on from the last checkpoint. Settings come from
    --config, then --set, then the options.
    """
    from phistill.report.terminal import duration_text, progress_bar
    from phistill.train import Progress, TrainConfig
    from phistill.train import train as run

    values = _read_toml(config) if config else {}
    values |= dict(_assignment(text) for text in assignments)
    values |= {key: value for key, value in options.items() if value is not None}
    if teachers is not None:
        values["teachers"] = _names(teachers)
    with progress_bar("train") as bar:

        def show(at: Progress) -> None:
            bar(at.step, at.num_steps, at.line().partition("  ")[2])

        result = run(cache, out, TrainConfig.from_dict(values), progress=show)
    if result.resumed_from == result.num_steps:
        click.echo(f"{out} is finished: {result.num_steps} steps, nothing to do.")
    else:
        click.echo(
            f"{out}: steps {result.resumed_from} to {result.num_steps} in "
            f"{duration_text(result.seconds)}, {result.rows_per_s:.0f} rows/s, "
            f"{result.wait_share:.1%} of the time waiting for data."
        )
        losses = "  ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
        click.echo(f"Last losses: {losses}")
    click.echo(f"Next: phistill evaluate {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), help="[default: the run's own]")
@click.option("--checkpoint", "which", default="latest", show_default=True, help="latest or best.")
@click.option(
    "--split", type=click.Choice(["heldout", "train", "all"]), default="heldout", show_default=True
)
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    run: Path, cache: Path | None, which: str, split: Any, device: str, as_json: bool
) -> None:
    """How much of each teacher a student explains on held-out images, beside an untrained one.

    Unexplained is the squared error over the squared deviation from the training mean: 0 is the
    teacher itself, 1 is no better than its mean.
    """
    import json

    from phistill.report.terminal import progress_bar
    from phistill.train import evaluate as measure
    from phistill.train.evaluation import as_table

    with progress_bar("evaluate") as bar:
        lines = measure(run, cache, which=which, split=split, device=device, progress=bar)
    if as_json:
        click.echo(json.dumps([line.to_dict() for line in lines], indent=2))
    else:
        click.echo(as_table(lines))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--checkpoint", "which", default="latest", show_default=True, help="latest or best.")
def export(run: Path, out: Path, which: str) -> None:
    """Write the student with its normalizers folded in: safetensors that timm loads, and heads."""
    from phistill.train import export as write

    click.echo(f"{write(run, out, which=which)}: model.safetensors, heads.safetensors, config.json")


@main.command()
@_cache_argument
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True
)
def report(cache: Path, runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained page: statistics, learning curves, PCA maps."""
    from phistill.report import report as write

    click.echo(f"Written: {write(cache, runs, out)}")


@main.command()
@_cache_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--rejects", "show_rejects", is_flag=True, help="List every rejected image.")
def inspect(cache: Path, as_json: bool, show_rejects: bool) -> None:
    """What a cache holds: rows, teachers, progress, sizes, settings."""
    import json

    from phistill import cache as store
    from phistill.pipeline import rejects
    from phistill.report.inspection import describe, render

    opened = store.open(cache)
    if show_rejects:
        found = rejects(opened)
        click.echo(json.dumps(dict(found), indent=2) if as_json else _rejects_text(found))
        return
    facts = describe(opened)
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))


@main.command()
@_cache_argument
def verify(cache: Path) -> None:
    """Check every byte of a cache against its checksums and commit records.

    Exits with 1 when anything is damaged or unfinished, and names teacher, shard and rows.
    """
    from phistill import cache as store
    from phistill.cache.verify import verify as check
    from phistill.report.terminal import bytes_text, progress_bar

    with progress_bar("verify") as bar:
        report = check(
            store.open(cache), progress=lambda done, total: bar(done, total, bytes_text(total))
        )
    for finding in report.findings:
        click.echo(str(finding))
    checked = f"{report.num_files} files, {bytes_text(report.num_bytes)} checked"
    if not report.findings:
        click.echo(f"{cache} is whole: {checked}.")
        return
    if report.damaged:
        click.echo(
            f"{len(report.damaged)} damaged; {checked}. "
            f"Mend it with: phistill extract IMAGES --cache {cache} --repair"
        )
    else:
        click.echo(
            f"Nothing is damaged, {len(report.findings)} shards are unfinished; {checked}. "
            f"Finish with: phistill extract IMAGES --cache {cache}"
        )
    sys.exit(1)


@main.command()
@_cache_argument
@click.argument("other", type=click.Path(path_type=Path))
def merge(cache: Path, other: Path) -> None:
    """Copy into CACHE the shards that OTHER has: another worker's copy, or other images."""
    from phistill import cache as store
    from phistill.cache.growth import merge as run

    opened = store.open(cache)
    with opened.writing():
        num_shards = run(opened, store.open(other))
    click.echo(f"{cache}: {num_shards} shards copied from {other}.")
    click.echo(f"Next: phistill fit-stats {cache}")


@main.command("remove-teacher")
@_cache_argument
@click.argument("name")
def remove_teacher(cache: Path, name: str) -> None:
    """Delete a teacher and all its features from a cache."""
    from phistill import cache as store
    from phistill.cache.growth import remove_teacher as run

    opened = store.open(cache)
    with opened.writing():
        run(opened, name)
    click.echo(f"{cache}: teacher {name} is deleted; {', '.join(opened.teachers) or 'none'} left.")


@main.command("remove-images")
@_cache_argument
@click.argument("ids", nargs=-1, required=True)
def remove_images(cache: Path, ids: tuple[str, ...]) -> None:
    """Take down images by id: their rows are never used again. Run fit-stats afterwards."""
    from phistill import cache as store
    from phistill.cache.growth import remove_images as run

    opened = store.open(cache)
    with opened.writing():
        num_rows = run(opened, ids)
    click.echo(f"{cache}: {num_rows} rows removed. Next: phistill fit-stats {cache}")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
def demo(out: Path) -> None:
    """The whole method on bundled images and teachers, with a report to look at."""
    from phistill.demo.run import demo as run

    run(out, say=click.echo)


def _seconds(text: str | None) -> float | None:
    """``3h50m``, ``90m``, ``45s`` or a number of seconds."""
    import re

    from phistill.cache.errors import UsageError

    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if not text.strip() or found is None:
        raise UsageError(f"--time-limit {text!r} is not like 3h50m, 90m or 45s.")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def _names(text: str | None) -> list[str] | None:
    """``a,b`` as a list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    from phistill.cache.errors import UsageError

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error


def _assignment(text: str) -> tuple[str, Any]:
    """``key=value`` with the value as in TOML; what is not TOML is a string."""
    import tomllib

    from phistill.cache.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r} is not KEY=VALUE.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


if __name__ == "__main__":
    main()
