"""Learning from a cache: one student or many, how good they are, and taking them away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import (
    ASSIGNMENT,
    DEVICE,
    LOCATION,
    NAMES,
    NUMBERS,
    PATH,
    SEEDS,
    TOML,
    ListOption,
    caches_argument,
    device_option,
    json_option,
    split_option,
)
from .mistakes import (
    refuse_as_out,
    refuse_no_run,
    refuse_nothing_to_evaluate,
    refuse_train_mistakes,
)
from .verbosity import LOG, progress


def _show_settings(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from phistill.train.config import settings_text

        click.echo(settings_text())
        context.exit()


stage_option = click.option(
    "--stage",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder on a near disk: copy what the run needs there first.",
)

logger_option = click.option(
    "--logger",
    "loggers",
    multiple=True,
    metavar="tensorboard|wandb|mlflow",
    help="Write the numbers there too; repeatable, or a MODULE:FUNCTION of one's own.",
)

extend_option = click.option(
    "--extend", is_flag=True, help="Give what is there more steps: --set num_steps, --epochs."
)


@click.command()
@caches_argument
@click.option("--out", required=True, type=PATH, help="Run folder.")
@click.option(
    "--cache-weights",
    cls=ListOption,
    type=NUMBERS,
    metavar="0.7,0.3",
    help="Shares of several caches in what is drawn.  [default: by their rows]",
)
@click.option("--config", type=TOML, metavar="FILE", help="TOML of settings.")
@click.option("--normalizer", help="Of the patch targets.  [default: phi-s]")
@click.option(
    "--teachers", cls=ListOption, type=NAMES, metavar="A,B", help="[default: all of the cache]"
)
@click.option("--student", help="A timm model.  [default: vit_small_patch16_224]")
@click.option("--epochs", type=float, help="Passes over the training rows.  [default: 20]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 128]")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 0.001]")
@click.option("--seed", type=int, help="Of weights and augmentation.  [default: 0]")
@click.option("--device", type=DEVICE, help="auto, cpu, cuda, ...  [default: auto]")
@logger_option
@stage_option
@extend_option
@click.option(
    "--set",
    "assignments",
    type=ASSIGNMENT,
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
    config: dict[str, Any] | None,
    assignments: tuple[tuple[str, Any], ...],
    stage: Path | None,
    extend: bool,
    loggers: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a student from one cache, or from several at once.

    Neither teachers nor images are needed. Run it again after an interruption to go on from the
    last checkpoint. Settings come from --config, then --set, then the options.

    \b
    phistill train my.cache --out runs/phi-s
    phistill train web.cache photos.cache --cache-weights 0.7,0.3 --out runs/mixed
    phistill train /nfs/my.cache --out runs/phi-s --stage /local/scratch
    """
    from phistill.errors import UsageError, counted
    from phistill.report.terminal import duration_text
    from phistill.train import TrainConfig

    values = config or {}
    for key in ("grid", "grids", "cells"):
        if key in values:
            raise UsageError(f"--config has {key}: it is for `phistill sweep`, not for one run.")
    values |= dict(assignments)
    values |= {key: value for key, value in options.items() if value is not None}
    values |= {"loggers": loggers} if loggers else {}
    if options["epochs"] is not None and values.get("num_steps"):
        raise UsageError(
            f"--epochs {options['epochs']:g} would not count beside num_steps="
            f"{values['num_steps']}. Leave it out, or add --set num_steps=0."
        )
    settings = TrainConfig.from_dict(values)
    refuse_as_out(out, settings, extend=extend)
    refuse_train_mistakes(caches, [settings])
    from phistill.train import train as run
    from phistill.train.curve import curve_end, unweighted
    from phistill.train.metrics import read_metrics

    with progress("train") as bar:
        result = run(
            caches,
            out,
            settings,
            stage=stage,
            extend=extend,
            progress=bar.event,
            stage_progress=lambda done, total: bar.bytes(done, total, "staging"),
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
    if (end := curve_end(unweighted(read_metrics(out, "train")))) is not None:
        click.echo(f"Curve: {end}")
    split = "" if result.num_heldout else " --split train"
    click.echo(f"Next: phistill evaluate {out}{split}")


checkpoint_option = click.option(
    "--checkpoint",
    "which",
    type=click.Choice(["latest", "best"]),
    default="latest",
    show_default=True,
    help="best: by the run's best_by, among those validated and kept.",
)


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--cache",
    "--against",
    "caches",
    multiple=True,
    type=LOCATION,
    help="The rows to judge by, repeatable.  [default: the run's own]",
)
@checkpoint_option
@split_option("heldout")
@click.option(
    "--images",
    metavar="IMAGES",
    help="Images that were never cached: the run's teachers look at them now.",
)
@click.option(
    "--text-classes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A label per line and, after a tab, its words.  [default: the labels]",
)
@click.option("--text-template", "templates", multiple=True, help="With {}; repeatable.")
@click.option(
    "--captions",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An image's id, a tab and a caption per line, or several lines: retrieval both ways.",
)
@click.option(
    "--masks",
    metavar="FOLDER|alpha:IMAGES",
    help="Label maps for a dense probe: ID.png for every image, or the images' transparency.",
)
@device_option
@json_option
def evaluate(
    run: Path,
    caches: tuple[str, ...],
    which: str,
    split: Any,
    images: str | None,
    text_classes: Path | None,
    templates: tuple[str, ...],
    captions: Path | None,
    masks: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Say how good a student is, on images it has not learnt from.

    Beside the teacher, the constant (the training mean), the same student before training and plain
    pixels, with 95 % intervals over images. With labels also kNN, a linear probe and, through
    the text tower of a teacher that has one, zero-shot classification and retrieval; with label
    maps a dense probe.

    \b
    phistill evaluate runs/phi-s
    phistill evaluate runs/phi-s --masks voc/SegmentationClass
    phistill evaluate runs/phi-s --images new-photos/
    phistill evaluate runs/phi-s --text-classes words.txt --text-template "a photo of a {}."
    """
    import json

    from phistill.errors import UsageError

    refuse_no_run(run)
    if images is not None and (caches or split != "heldout" or masks):
        raise UsageError("--images are judged as they are: leave --cache, --split and --masks out.")
    if images is None:
        refuse_nothing_to_evaluate(run, caches, split)
    from phistill.report.evaluation.judging import Judging
    from phistill.report.tables import verdict_text

    judging = Judging(
        run=run,
        which=which,
        split=split,
        device=device,
        text_classes=text_classes,
        templates=templates,
        captions=captions,
        masks=masks,
    )
    with progress("evaluate") as bar:
        found, notes = judging.of_images(images, bar) if images else judging.of_cache(caches, bar)
    for note in notes:
        LOG.info(note)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else verdict_text(found))


@click.command()
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@checkpoint_option
@click.option("--onnx", is_flag=True, help="Add student.onnx, compared with torch.")
def export(run: Path, out: Path, which: str, onnx: bool) -> None:
    """Write the student with its normalizers folded in, for timm, transformers and others.

    OUT gets weights, a model card, and student.py, which answers in each teacher's own feature
    space without phistill.
    """
    from phistill.cache.storage.new_folder import require_new

    refuse_no_run(run)
    require_new(out)
    from phistill.train import export as write
    from phistill.train.evaluation import card_metrics

    folder = write(run, out, which=which, onnx=onnx, metrics=card_metrics(run, which=which))
    click.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


@click.command()
@caches_argument
@click.option("--out", required=True, type=PATH, help="Folder of the runs.")
@click.option(
    "--config",
    "grid",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML of settings and what varies: [base], [grid], [[grids]], [[cells]].",
)
@click.option(
    "--preset", default="", metavar="methods", help="The twelve methods of PHI-S's paper."
)
@click.option(
    "--seeds", cls=ListOption, type=SEEDS, metavar="0,1,2", help="Every cell once for each."
)
@logger_option
@stage_option
@extend_option
def sweep(
    caches: tuple[str, ...],
    out: Path,
    grid: Path | None,
    preset: str,
    seeds: tuple[int, ...],
    loggers: tuple[str, ...],
    stage: Path | None,
    extend: bool,
) -> None:
    """Train every setting of a grid in one pass.

    The students are equal to those of separate runs. Run it again to go on: finished cells are
    skipped. Several caches are drawn from with the grid's cache_weights. The table is over all
    cells in OUT, and says which differences are none.

    \b
    phistill sweep my.cache --config grid.toml --out runs/grid
    phistill sweep my.cache --preset methods --seeds 0,1,2 --out runs/methods
    phistill sweep /nfs/my.cache --config grid.toml --out runs/grid --stage /local/scratch
    """
    from phistill.errors import UsageError, counted
    from phistill.report.terminal import duration_text
    from phistill.train.sweeps.cells import read_grid

    if grid is None and not preset:
        raise UsageError("say what to train: --config FILE, --preset methods, or both.")
    cells = read_grid(grid, preset=preset, seeds=seeds or (), loggers=loggers)
    refuse_train_mistakes(caches, [cell.config for cell in cells])
    from phistill.train import Progress
    from phistill.train.sweeps.sweep import sweep as run

    with progress("sweep") as bar:

        def show(cell: str, at: Progress) -> None:
            bar(at.step, at.num_steps, at.note(), part=cell)

        result = run(
            caches,
            out,
            cells,
            stage=stage,
            extend=extend,
            progress=show,
            stage_progress=lambda done, total: bar.bytes(done, total, "staging"),
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
