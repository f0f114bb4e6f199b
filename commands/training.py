"""Statistics and students: stages two and three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import (
    assignment_of,
    cache_argument,
    cache_path,
    caches_argument,
    names_of,
    numbers_of,
    read_toml,
)


@click.command("fit-stats")
@cache_argument
@click.option("--teachers", help="Comma-separated; all by default.")
@click.option("--exact", is_flag=True, help="Float64 products: error 1e-12, not 2e-6.")
@click.option("--tokens-per-image", type=int, help="Tokens taken of each image; all by default.")
@click.option("--max-images", type=int, help="Training rows taken; all by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the two choices above.")
@click.option(
    "--trim",
    type=float,
    default=0.0,
    help="Leave out up to this share of tokens, the farthest; summaries stay whole.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, or a torch device: cuda.")
@click.option("--workers", type=int, help="Processes; a thread per core by default.")
@click.option("--scheduler", help="Address of a dask.distributed scheduler, tcp://...")
@click.option("--repair", is_flag=True, help="Check every stored file; make damaged ones again.")
def fit_stats(cache: str, teachers: str | None, **options: Any) -> None:
    """Compute the moments of every teacher and fit PHI-S.

    A killed run goes on where it stopped, and a cache that grew costs its new shards only.
    """
    from phistill import cache as store
    from phistill.report.terminal import bytes_text, progress_bar
    from phistill.stats import fit_stats as run
    from phistill.stats.fit.schedule import FitProgress
    from phistill.stats.table import render_notes, render_table

    with progress_bar("fit-stats") as bar:

        def show(at: FitProgress) -> None:
            bar(at.done_bytes, at.total_bytes, f"{at.array}, {bytes_text(at.total_bytes)}")

        rows = run(store.open(cache), teachers=names_of(teachers), progress=show, **options)
    click.echo(render_table(rows))
    for note in render_notes(rows):
        click.echo(note)
    click.echo(f"Next: phistill train {cache} --out runs/phi-s")


def _show_settings(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from phistill.train.settings import as_text

        click.echo(as_text())
        context.exit()


stage_option = click.option(
    "--stage",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder on a near disk: copy what the run needs there first.",
)


@click.command()
@caches_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--weights", help="Of several caches, comma-separated.  [default: by their rows]")
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="TOML of settings.")
@click.option("--normalizer", help="Of the patch targets.  [default: phi-s]")
@click.option("--teachers", help="Comma-separated; all of the cache by default.")
@click.option("--student", help="A timm model.  [default: vit_small_patch16_224]")
@click.option("--epochs", type=float, help="Passes over the training rows.  [default: 20]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 128]")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 0.001]")
@click.option("--seed", type=int, help="Of weights and augmentation.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda, ...  [default: auto]")
@stage_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting (see --settings), value as in TOML; repeatable.",
)
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_settings,
    help="List every setting with its default and meaning.",
)
def train(
    caches: tuple[str, ...],
    out: Path,
    weights: str | None,
    config: Path | None,
    teachers: str | None,
    assignments: tuple[str, ...],
    stage: Path | None,
    **options: Any,
) -> None:
    """Train a student from one cache, or from several at once.

    Neither teachers nor images are needed. Run it again after an interruption to go on from the
    last checkpoint. Settings come from --config, then --set, then the options.

    \b
    phistill train my.cache --out runs/phi-s
    phistill train web.cache photos.cache --weights 0.7,0.3 --out runs/mixed
    phistill train /nfs/my.cache --out runs/phi-s --stage /local/scratch
    """
    from phistill.errors import UsageError, counted
    from phistill.report.terminal import bytes_text, duration_text, progress_bar
    from phistill.train import Progress, TrainConfig
    from phistill.train import train as run

    values = read_toml(config) if config else {}
    if "grid" in values:
        raise UsageError(f"{config} has a [grid]: it is for `phistill sweep`, not for one run.")
    values |= dict(assignment_of(text) for text in assignments)
    values |= {key: value for key, value in options.items() if value is not None}
    if teachers is not None:
        values["teachers"] = names_of(teachers)
    if weights is not None:
        values["cache_weights"] = numbers_of("--weights", weights)
    with progress_bar("train") as bar:

        def show(at: Progress) -> None:
            bar(at.step, at.num_steps, at.note())

        result = run(
            caches,
            out,
            TrainConfig.from_dict(values),
            stage=stage,
            progress=show,
            stage_progress=lambda done, total: bar(done, total, f"staging {bytes_text(total)}"),
        )
    if result.resumed_from == result.num_steps:
        click.echo(f"{out} is finished: {counted(result.num_steps, 'step')}, nothing to do.")
    else:
        click.echo(
            f"{out}: steps {result.resumed_from} to {result.num_steps} in "
            f"{duration_text(result.seconds)}, {result.rows_per_s:.0f} rows/s, "
            f"{result.wait_share:.1%} of the time waiting for data."
        )
        losses = "  ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
        click.echo(f"Last losses: {losses}")
    split = "" if result.num_heldout else " --split train"
    click.echo(f"Next: phistill evaluate {out}{split}")


checkpoint_option = click.option(
    "--checkpoint",
    "which",
    type=click.Choice(["latest", "best"]),
    default="latest",
    show_default=True,
    help="best: lowest mean unexplained variance among those validated and kept.",
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=cache_path,
    help="Repeatable.  [default: the run's own]",
)
@checkpoint_option
@click.option(
    "--split", type=click.Choice(["heldout", "train", "all"]), default="heldout", show_default=True
)
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    run: Path, caches: tuple[str, ...], which: str, split: Any, device: str, as_json: bool
) -> None:
    """Say how much of each teacher a student explains.

    Measured on held-out images, beside the same student before training. Unexplained is the squared
    error over the squared deviation from the training mean: 0 is the teacher itself, 1 is no better
    than its mean.
    """
    import json

    from phistill.report.terminal import progress_bar
    from phistill.train import evaluate as measure
    from phistill.train.evaluation import as_table

    with progress_bar("evaluate") as bar:
        lines = measure(run, caches or None, which=which, split=split, device=device, progress=bar)
    if as_json:
        click.echo(json.dumps([line.to_dict() for line in lines], indent=2))
    else:
        click.echo(as_table(lines))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@checkpoint_option
def export(run: Path, out: Path, which: str) -> None:
    """Write the student with its normalizers folded in.

    OUT gets model.safetensors and config.json for timm, and heads.safetensors that answer in each
    teacher's own feature space.
    """
    from phistill.train import export as write

    click.echo(f"{write(run, out, which=which)}: model.safetensors, heads.safetensors, config.json")


@click.command()
@caches_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option(
    "--config",
    "grid",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="TOML grid: settings, and a [grid] table of lists.",
)
@stage_option
def sweep(caches: tuple[str, ...], out: Path, grid: Path, stage: Path | None) -> None:
    """Train every setting of a grid in one pass.

    The students are equal to those of separate runs. Run it again to go on: finished cells are
    skipped. Several caches are drawn from with the grid's cache_weights.

    \b
    phistill sweep my.cache --config grid.toml --out runs/grid
    phistill sweep /nfs/my.cache --config grid.toml --out runs/grid --stage /local/scratch
    """
    from phistill.errors import counted
    from phistill.report.terminal import bytes_text, duration_text, progress_bar
    from phistill.train import Progress
    from phistill.train.sweeps.cells import read_grid
    from phistill.train.sweeps.sweep import sweep as run

    with progress_bar("sweep") as bar:

        def show(cell: str, at: Progress) -> None:
            bar(at.step, at.num_steps, cell)

        result = run(
            caches,
            out,
            read_grid(grid),
            stage=stage,
            progress=show,
            stage_progress=lambda done, total: bar(done, total, f"staging {bytes_text(total)}"),
        )
    click.echo(
        f"{out}: {result.num_trained} of {counted(result.num_cells, 'cell')} trained in "
        f"{counted(result.num_passes, 'pass', 'passes')} over the cache, "
        f"{duration_text(result.seconds)}."
    )
    if result.table is None:
        click.echo("Other processes still train cells; the last to end writes the table.")
    else:
        click.echo(result.table.read_text("utf-8"))


@click.command("export-normalizer")
@cache_argument
@click.argument("teacher")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--kind", default="patches", show_default=True, help="patches, summary, registers.")
@click.option("--method", default="phi-s", show_default=True, help="Normalizer.")
def export_normalizer(cache: str, teacher: str, out: Path, kind: str, method: str) -> None:
    """Write a fitted normalizer as a file of its own.

    One safetensors file with mean, W and Theta, to be used without phistill.
    """
    from phistill import cache as store
    from phistill.stats.export import export_normalizer as write

    write(store.open(cache), teacher, out, kind=kind, method=method)
    click.echo(f"Written: {out}")
