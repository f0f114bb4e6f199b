"""Caches that travel: to a disk near by, and to and from other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import (
    LOCATION,
    NAMED_GRID,
    NAMED_LAYOUT,
    NUM_BYTES,
    PATH,
    cache_argument,
    json_option,
    layout_options,
    source_options,
    split_option,
    teachers_option,
)
from .verbosity import progress


@click.command()
@cache_argument
@click.argument("dest", type=LOCATION)
@teachers_option
@split_option("all")
@click.option("--rows", "num_rows", type=click.IntRange(min=1), help="Only so many rows.")
@click.option("--max-bytes", type=NUM_BYTES, metavar="200G", help="Only as many rows as fit.")
@click.option("--workers", type=click.IntRange(min=1), default=4, show_default=True)
def stage(
    cache: str,
    dest: str,
    teachers: list[str] | None,
    split: Any,
    num_rows: int | None,
    max_bytes: int | None,
    workers: int,
) -> None:
    """Copy what a run needs of a cache to DEST, a disk near by.

    Every file is checked by its sha256 on the way. Run it again to go on after an interruption, or
    when the cache has grown: only what is missing is copied.

    \b
    phistill stage /nfs/my.cache /local/my.cache --teachers dino
    phistill stage my.cache small.cache --max-bytes 20G
    """
    from phistill import cache as store
    from phistill.cache.upkeep.stage import Selection
    from phistill.cache.upkeep.stage import stage as run
    from phistill.errors import counted
    from phistill.report.terminal import bytes_text
    from phistill.stats.fit.loading import is_fitted
    from phistill.stats.fit.reuse import reuse_statistics

    source = store.open(cache)
    selection = Selection(
        teachers=tuple(teachers or ()),
        split=split,
        num_rows=num_rows or 0,
        max_bytes=max_bytes or 0,
    )
    with progress("stage") as bar:
        report = run(
            source,
            dest,
            selection,
            workers=workers,
            progress=bar.bytes,
            reuse=reuse_statistics,
        )
    staged = report.cache
    if report.num_shards or report.num_statistics:
        click.echo(f"{dest}: {bytes_text(report.num_bytes)} copied.")
    else:
        click.echo(f"{dest} is complete: nothing to do.")
    click.echo(
        f"{counted(staged.info.num_real_rows, 'row')}, teachers {', '.join(staged.teachers)}."
    )
    if is_fitted(staged):
        click.echo(f"Next: phistill train {dest} --out runs/phi-s")
    elif split != "heldout":
        click.echo(f"Next: phistill fit-stats {dest}")


@click.command("import-features")
@click.argument("features", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cache", required=True, type=LOCATION, help="Cache to make, or to add to.")
@click.option("--source", default="", help="What computed them: MODEL, layer, revision.")
@click.option(
    "--ids",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Which image each row is.  [default: ids.parquet or ids.txt in FEATURES]",
)
@click.option("--images", help="For the student's pixels, by id; as extract reads IMAGES.")
@source_options
@click.option(
    "--grid",
    "grids",
    type=NAMED_GRID,
    multiple=True,
    metavar="NAME=H,W",
    help="Of a teacher's patches.",
)
@click.option(
    "--layout",
    "layouts",
    type=NAMED_LAYOUT,
    multiple=True,
    metavar="[NAME=]LAYOUT",
    help="Axes of patches: ntc, nct, nhwc or nchw.  [default: where only one makes sense]",
)
@click.option("--bfloat16", is_flag=True, help="Arrays of uint16 are the bits of bfloat16.")
@click.option("--view", "views", multiple=True, help="What the features see.  [default: resize]")
@click.option("--holdout", type=float, help="Fraction of images held out.  [default: 0.05]")
@click.option("--seed", type=int, help="Of the row order and the split.  [default: 0]")
@click.option("--pixel-size", type=int, help="Side of the pixels of --images.  [default: 224]")
@layout_options
@click.option("--max-reject-frac", type=float, help="As of extract.  [default: 0.01]")
@click.option("--repair", is_flag=True, help="Check every byte; import damaged shards again.")
def import_features(
    features: Path,
    cache: str,
    source: str,
    ids: Path | None,
    images: str | None,
    reading: dict[str, Any],
    grids: tuple[tuple[str, tuple[int, int]], ...],
    layouts: tuple[tuple[str, str], ...],
    bfloat16: bool,
    views: tuple[str, ...],
    max_reject_frac: float | None,
    repair: bool,
    **settings: Any,
) -> None:
    """Make a cache of features that something else computed.

    FEATURES is a folder of NAME.KIND.npy files, KIND one of patches, summary, registers, with
    ids.txt or ids.parquet, or of WebDataset tars (docs/caches.md). What computed them is stated
    with --source and becomes part of the teacher. On a cache of the same images they are added.

    \b
    phistill import-features feats/ --cache my.cache --source "DINOv2 ViT-B/14, lab run of May"
    phistill import-features feats/ --cache my.cache --source "..." --images photos/
    """
    from phistill.errors import counted
    from phistill.pipeline import CacheSettings
    from phistill.pipeline.decode.views import View
    from phistill.pipeline.exchange.import_features import import_features as run
    from phistill.pipeline.images.source import SourceOptions

    parsed = tuple(View.parse(text) for text in views) or None
    with progress("import") as bar:
        report = run(
            features,
            cache,
            source=source,
            ids=ids,
            grids=dict(grids),
            layouts=dict(layouts),
            bfloat16=bfloat16,
            images=images,
            source_options=SourceOptions(**reading),
            settings=CacheSettings(views=parsed, **settings),
            max_reject_frac=max_reject_frac,
            repair=repair,
            progress=lambda done, total: bar(done, total, "rows"),
        )
    if report.num_repaired:
        click.echo(f"Damaged, and imported again: {counted(report.num_repaired, 'shard')}.")
    if report.num_shards:
        written = counted(report.num_shards, "shard")
        click.echo(f"{cache}: {written} of pixels and teachers written.")
    else:
        click.echo(f"{cache} is complete: nothing to do.")
    click.echo(f"{counted(report.num_rows, 'row')}, teachers {', '.join(report.cache.teachers)}.")
    for teacher in map(report.cache.teacher, report.teachers):
        height, width = teacher.grid
        click.echo(
            f"{teacher.name}: patches on a grid of {height} x {width}, {teacher.width('patches')} "
            "channels."
        )
    for coarse in report.coarse:
        click.echo(coarse)
    if report.num_unknown:
        click.echo(f"{report.num_unknown:,} of the rows given are of images it does not have.")
    if report.num_rejects:
        click.echo(f"{report.num_rejects} rejected: phistill inspect {cache} --rejects")
    click.echo(f"Next: phistill fit-stats {cache}")


@click.command("export-features")
@cache_argument
@click.argument("out", type=PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["npy", "webdataset"]),
    default="npy",
    show_default=True,
    help="An array per teacher and kind, or tars.",
)
@teachers_option
@split_option("all")
@click.option("--pixels", is_flag=True, help="The student's pixels too.")
@click.option(
    "--unbiased",
    is_flag=True,
    help="Decode codes for training instead of as near as can be (docs/compact.md).",
)
@click.option(
    "--rows-per-tar", type=click.IntRange(min=1), default=1000, show_default=True, help="For tars."
)
def export_features(
    cache: str,
    out: Path,
    kind: str,
    teachers: list[str] | None,
    split: Any,
    pixels: bool,
    unbiased: bool,
    rows_per_tar: int,
) -> None:
    """Write a cache's features as npy arrays or tars.

    The values are those of the cache, bit for bit, and ids.parquet says which image each row is;
    codes are decoded. import-features makes a cache of them again.

    \b
    phistill export-features my.cache feats/ --teachers dino --split train
    phistill export-features my.cache tars/ --format webdataset --pixels
    """
    from phistill import cache as store
    from phistill.errors import counted
    from phistill.pipeline.exchange.export_features import export_features as run

    with progress("export") as bar:
        report = run(
            store.open(cache),
            out,
            format=kind,
            teachers=tuple(teachers or ()),
            split=split,
            pixels=pixels,
            unbiased=unbiased,
            rows_per_tar=rows_per_tar,
            progress=lambda done, total: bar(done, total, "rows"),
        )
    shown = ", ".join(report.files[:6]) + (", ..." if len(report.files) > 6 else "")
    click.echo(f"{out}: {counted(report.num_rows, 'row')} in {shown}")


@click.command()
@click.argument("embeddings", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--bytes", "num_bytes", type=click.IntRange(min=1), help="Of a vector; not needed with --codec."
)
@click.option("--codec", type=PATH, help="Made before, to be used for these too.")
@json_option
def quantize(
    embeddings: Path, out: Path, num_bytes: int | None, codec: Path | None, as_json: bool
) -> None:
    """Code embeddings in a few bytes each.

    EMBEDDINGS is an npy file (n, c); OUT, X.npy, becomes one of uint8 (n, bytes), and X.codec what
    decodes it (docs/codes.md). Says what is lost, and how often the nearest neighbour is still
    found, on up to a thousand vectors that a new codec is not fitted on.

    \b
    phistill quantize clip.npy codes.npy --bytes 64
    phistill dequantize codes.npy back.npy
    """
    import json
    import math
    from dataclasses import asdict

    from phistill.errors import counted, percent
    from phistill.stats.codes.embeddings import codec_path
    from phistill.stats.codes.embeddings import quantize as run

    with progress("quantize") as bar:
        report = run(
            embeddings,
            out,
            num_bytes=num_bytes,
            codec=codec,
            progress=lambda done, total: bar(done, total, "vectors"),
        )
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(
        f"{out}: {counted(report.num_vectors, 'vector')} of {report.width} in "
        f"{counted(report.num_bytes, 'byte')} each. What decodes them: {codec_path(out)}"
    )
    if 0 < report.num_fitted < report.width:
        click.echo(
            f"The codec was fitted on {counted(report.num_fitted, 'vector')} of {report.width} "
            "channels; it wants more vectors than channels."
        )
    if report.lost_share is None:
        click.echo("Too few vectors to measure what is lost.")
    else:
        decibel = -10 * math.log10(report.lost_share) if report.lost_share else math.inf
        found = ", ".join(f"recall@{k} {share:.3f}" for k, share in report.recall.items())
        click.echo(
            f"Lost: {percent(report.lost_share)} of the variance ({decibel:.1f} dB). Nearest of "
            f"{report.num_candidates:,}: {found} ({report.num_measured:,} queries)."
        )


@click.command()
@click.argument("codes", type=PATH)
@click.argument("out", type=PATH)
@click.option("--codec", type=PATH, help="What decodes them.  [default: CODES with .codec]")
def dequantize(codes: Path, out: Path, codec: Path | None) -> None:
    """Decode what quantize coded.

    OUT becomes an npy file of float32.

    \b
    phistill dequantize codes.npy back.npy
    """
    from phistill.stats.codes.embeddings import dequantize as run

    with progress("dequantize") as bar:
        num_vectors, width = run(
            codes, out, codec=codec, progress=lambda done, total: bar(done, total, "vectors")
        )
    click.echo(f"{out}: {num_vectors:,} vectors of {width}, float32.")


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
