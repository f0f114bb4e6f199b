"""The drawings of the pages: python docs/making/diagrams.py writes docs/pictures/*.svg.

Where phistill decides something (floors, views, orders, files), the drawing asks phistill.
"""

from __future__ import annotations

import tomllib

import numpy as np
from drawing import COLOURS, DOCS, INK, PALE, arrow, blank, box, save
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from phistill.cache.order import EpochOrder
from phistill.cache.row_set import RowSet
from phistill.pipeline import CacheSettings


def way(figure: Figure) -> None:
    """What is done once, and what as often as one likes."""
    axes = blank(figure, (0, 10), (0, 2.6))
    for at, (title, below) in enumerate(
        [
            ("images", "a folder, tars,\nparquet"),
            ("extract", "each teacher looks\nat each image once"),
            ("cache", "features, pixels,\nchecksums"),
            ("fit-stats", "exact moments,\nPHI-S"),
            ("train", "any student, loss,\nnormalizer"),
        ]
    ):
        box(axes, (at * 2 + 0.1, 0.9), title, below, filled=title in ("images", "cache"))
        if at < 4:
            arrow(axes, (at * 2 + 1.65, 1.35), (at * 2 + 2.05, 1.35))
    axes.text(2.85, 0.4, "once", ha="center", color=COLOURS[0])
    axes.text(
        7.85, 0.4, "again and again, without teachers or images", ha="center", color=COLOURS[1]
    )


def workers(figure: Figure) -> None:
    """Twelve shards of two teachers, dealt out to four workers."""
    axes = blank(figure, (-2, 13), (-0.6, 3.2))
    for row, owner in enumerate(("teachers/clip", "teachers/dino", "pixels")):
        axes.text(-0.2, row + 0.4, owner, ha="right", va="center")
        for shard in range(12):
            colour = COLOURS[shard % 4]
            axes.add_patch(Rectangle((shard, row), 0.9, 0.85, fc=colour, ec="white", alpha=0.85))
            axes.text(shard + 0.45, row + 0.42, str(shard), ha="center", va="center", color="white")
    axes.text(6, -0.4, "shard s belongs to worker s mod 4: --worker 0/4 ... 3/4", ha="center")


def orders(figure: Figure) -> None:
    """Which rows an epoch of 1,024 takes, place by place, in both orders: phistill's own."""
    rows = RowSet(np.arange(1024))
    for axes, mode in zip(figure.subplots(1, 2), ("full", "block"), strict=True):
        order = EpochOrder(rows=rows, seed=0, epoch=0, mode=mode, block_rows=16)
        places = order.between(0, 1024)
        axes.plot(places, ".", color=COLOURS[0], markersize=1.5, rasterized=True)
        axes.set(title=f"order = {mode}", xlabel="place in the epoch", xticks=[], yticks=[])
        axes.set_ylabel("row of the cache")


def views(figure: Figure) -> None:
    """What each kind of view takes of an image of 3 to 2."""
    boxes = {
        "resize": (0, 0, 3, 2),
        "center-crop": (0.5, 0, 2, 2),
        "random-resized-crop": (1.3, 0.25, 1.3, 1.1),
    }
    for axes, (kind, (x, y, width, height)) in zip(
        figure.subplots(1, 3), boxes.items(), strict=True
    ):
        axes.add_patch(Rectangle((0, 0), 3, 2, fc=PALE, ec=INK))
        axes.add_patch(Rectangle((x, y), width, height, fc="none", ec=COLOURS[1], lw=2.5))
        axes.set(title=kind, xlim=(-0.1, 3.1), ylim=(-0.1, 2.1), aspect="equal")
        axes.set_axis_off()


def compact(figure: Figure) -> None:
    """Where features become codes, and where they are features again."""
    axes = blank(figure, (0, 10), (0, 2.9))
    boxes = {
        "teachers": (0.1, 1.7, "patches, float16"),
        "statistics": (2.6, 2.1, "of the features"),
        "codec": (2.6, 0.6, "mean row, axes, DCT, bits"),
        "cache": (5.1, 0.6, "codes: 2 bits a value"),
        "device": (7.9, 1.3, "unpack, decode, normalise"),
    }
    for title, (x, y, below) in boxes.items():
        box(axes, (x, y - 0.4), title, below, filled=title == "cache", size=(1.8, 0.75))
    arrow(axes, (2.0, 1.75), (2.5, 2.1))
    arrow(axes, (2.0, 1.45), (2.5, 0.8))
    arrow(axes, (4.5, 0.6), (5.0, 0.6))
    arrow(axes, (7.0, 0.65), (7.8, 1.1))
    arrow(axes, (4.5, 2.1), (7.8, 1.55))
    axes.text(6.2, 2.05, "normalizers", ha="center", color=COLOURS[0])


def rooms(figure: Figure) -> None:
    """The floors that lint-imports knows: a room imports from those below it."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    axes = blank(figure, (0, 10), (-0.1, len(layers) * 0.5))
    for floor, layer in enumerate(reversed(layers)):
        names = [one.strip().removeprefix("phistill.") for one in layer.split("|")]
        width = 7.8 / len(names)
        for at, name in enumerate(names):
            corner, size = (1.1 + at * width, floor * 0.5), (width - 0.12, 0.3)
            box(axes, corner, name, filled=name == "cache", size=size)
    arrow(axes, (0.6, len(layers) * 0.5 - 0.2), (0.6, 0.0))
    axes.text(0.4, len(layers) * 0.25, "imports", rotation=90, ha="center", va="center")


def layout(figure: Figure) -> None:
    """The files of one shard of 1,024 rows: as many rows each as phistill puts into one."""
    info = CacheSettings(shard_rows=1024).new_cache(num_rows=1024)
    arrays = {
        "summary, 4 KB a row": 1024 * 4,
        "pixels, 151 KB": 224 * 224 * 3,
        "DINOv2-L patches, 524 KB": 256 * 1024 * 2,
        "SigLIP patches, 590 KB": 256 * 1152 * 2,
        "SAM-B patches, 6.3 MB": 4096 * 768 * 2,
    }
    axes = blank(figure, (-360, 1250), (-0.6, len(arrays)))
    for at, (name, num_bytes) in enumerate(reversed(arrays.items())):
        rows = info.rows_per_file(num_bytes)
        axes.text(-15, at + 0.35, name, ha="right", va="center")
        for start in range(0, 1024, rows):
            axes.add_patch(Rectangle((start, at), rows, 0.7, fc=PALE, ec=COLOURS[0], lw=0.7))
        axes.text(1040, at + 0.35, f"{1024 // rows} x {rows}", va="center")
    axes.text(512, -0.45, "rows 0 .. 1,023 of one shard; files x rows of a file", ha="center")


def commit(figure: Figure) -> None:
    """In which order the files of a shard are written, and when they are believed."""
    axes = blank(figure, (0, 10), (0, 2.2))
    steps = {
        "files": "one per array\nor more",
        "facts": "sha256, size,\nside",
        "record": "digests of\nall",
    }
    steps["pack"] = "records of\nmany shards"
    for at, (title, below) in enumerate(steps.items()):
        box(axes, (at * 2.5 + 0.2, 0.8), title, below, filled=title in ("record", "pack"))
        if at < 3:
            arrow(axes, (at * 2.5 + 1.8, 1.25), (at * 2.5 + 2.6, 1.25))
    axes.text(2.2, 0.3, "killed here: not believed, made again", ha="center", color=COLOURS[1])
    axes.text(7.2, 0.3, "killed here: kept", ha="center", color=COLOURS[2])


def growth(figure: Figure) -> None:
    """Rows and teachers of a cache that grew and shrank."""
    axes = blank(figure, (-2, 13.5), (-0.8, 3.4))
    owners = {"pixels": 0, "teachers/clip": 0, "teachers/sam": 1}
    for row, (owner, colour) in enumerate(owners.items()):
        axes.text(-0.2, row + 0.4, owner, ha="right", va="center")
        for start, length, later in ((0, 8, 0), (8.4, 4, 2)):
            fill = COLOURS[later or colour]
            axes.add_patch(Rectangle((start, row), length, 0.85, fc=fill, ec="white", alpha=0.85))
    axes.add_patch(Rectangle((3, -0.1), 0.5, 3.05, fc="white", ec=INK, hatch="////", lw=0.5))
    axes.text(4, -0.55, "segment 0", ha="center")
    axes.text(10.4, -0.55, "--append", ha="center", color=COLOURS[2])
    axes.text(6.4, 3.1, "--teacher, later", ha="center", color=COLOURS[1])
    axes.text(3.2, 3.1, "remove-images", ha="center")


def student(figure: Figure) -> None:
    """One backbone, a head per teacher, answers in each teacher's own space."""
    axes = blank(figure, (0, 10), (0, 3.2))
    box(axes, (0.1, 1.2), "picture", "uint8", filled=True, size=(1.3, 0.8))
    box(axes, (2.2, 1.2), "backbone", "timm", size=(1.6, 0.8))
    arrow(axes, (1.5, 1.6), (2.1, 1.6))
    for at, name in enumerate(("sam", "clip", "dino")):
        y = 0.1 + at * 1.05
        box(axes, (4.8, y), "head", "normalizer inverted inside", size=(2.1, 0.8))
        box(axes, (7.9, y), f'answers["{name}"]', "patches, summary", filled=True, size=(1.9, 0.8))
        arrow(axes, (3.9, 1.6), (4.7, y + 0.4))
        arrow(axes, (7.0, y + 0.4), (7.8, y + 0.4))


def plugs(figure: Figure) -> None:
    """The five places where a function of one's own stands."""
    axes = blank(figure, (0, 10.2), (0, 1.9))
    chain = [("source", True), ("teacher", True), ("cache", False), ("student", True)]
    chain += [("head", True), ("loss", True)]
    for at, (title, yours) in enumerate(chain):
        box(axes, (at * 1.7 + 0.1, 0.7), title, filled=not yours, size=(1.2, 0.7))
        if at < len(chain) - 1:
            arrow(axes, (at * 1.7 + 1.38, 1.05), (at * 1.7 + 1.72, 1.05))
        if yours:
            axes.text(at * 1.7 + 0.7, 0.25, "yours", ha="center", color=COLOURS[1])


def queue(figure: Figure) -> None:
    """Four elements of a job array under a time limit, queued again until their share is done."""
    axes = blank(figure, (-2.2, 13), (-0.8, 4.2))
    for row, pieces in enumerate(([(0, 4), (5, 4), (9.6, 2)], [(0.4, 4), (6, 4), (10.5, 1)],
                                  [(0.2, 2.1), (4.8, 4), (9, 3)], [(1, 4), (5.4, 4)])):  # fmt: skip
        axes.text(-0.2, row + 0.4, f"worker {row}/4", ha="right", va="center")
        for at, (start, length) in enumerate(pieces):
            last = at == len(pieces) - 1
            killed = length == 2.1
            fill = COLOURS[1] if killed else COLOURS[2] if last else COLOURS[0]
            axes.add_patch(Rectangle((start, row), length, 0.75, fc=fill, ec="white"))
    for at, text in enumerate(("time limit: 143, queued again", "node failed", "share done")):
        colour = COLOURS[at]
        axes.text(1.6 + at * 4.4, -0.6, text, ha="center", color=colour)


def bucket(figure: Figure) -> None:
    """A cache in a bucket, written by workers, read in blocks or staged."""
    axes = blank(figure, (0, 10), (0, 2.9))
    box(axes, (0.1, 1.0), "extract", "workers, leases", size=(1.7, 0.8))
    box(
        axes,
        (3.0, 1.0),
        "s3://bucket/my.cache",
        "same bytes as in a folder",
        filled=True,
        size=(2.6, 0.8),
    )
    box(axes, (6.6, 1.9), "train order=block", "long reads, 16 at once", size=(2.6, 0.8))
    box(axes, (6.6, 0.1), "train --stage", "once, to a local disk", size=(2.6, 0.8))
    arrow(axes, (1.9, 1.4), (2.9, 1.4))
    arrow(axes, (5.7, 1.6), (6.5, 2.2))
    arrow(axes, (5.7, 1.2), (6.5, 0.6))


DIAGRAMS = {
    way: (8, 2.1),
    workers: (8, 2.0),
    orders: (8, 2.4),
    views: (8, 2.0),
    compact: (8, 2.3),
    rooms: (8, 3.6),
    layout: (8, 2.2),
    commit: (8, 1.8),
    growth: (8, 2.2),
    student: (8, 2.5),
    plugs: (8, 1.5),
    queue: (8, 2.2),
    bucket: (8, 2.2),
}

if __name__ == "__main__":
    save(DIAGRAMS)
