"""The drawings of the pages: python docs/making/diagrams.py writes docs/pictures/*.svg.

Where phistill decides something (normalizers, views), the drawing asks phistill.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from phistill.stats import Moments, Normalizer

OUT = Path(__file__).parent.parent / "pictures"
INK, PALE = "#333333", "#e8eaf6"
COLOURS = ("#3f51b5", "#c2410c", "#0f766e", "#a16207")
STYLE = {
    "svg.hashsalt": "phistill",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
}


def normalizers(figure: Figure) -> None:
    """Two teachers of two channels, under four of the eight normalizers."""
    random = np.random.default_rng(0)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    large = random.normal(size=(300, 2)) * [3.0, 0.6] @ turn.T + [2, 1]
    small = random.normal(size=(300, 2)) * [0.5, 0.2] @ turn + [-1, 0]
    shown = {"none": "as they come", "standardize": "standardize", "zca": "zca", "phi-s": "phi-s"}
    for axes, (method, title) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        for cloud, colour in ((large, COLOURS[0]), (small, COLOURS[1])):
            fitted = Normalizer.fit(Moments.of(cloud), method=method)
            at = cloud if method == "none" else fitted.transform(cloud)
            axes.plot(*at.T, ".", color=colour, markersize=2, alpha=0.6, rasterized=True)
        axes.set(title=title, xlim=(-9, 9), ylim=(-9, 9), aspect="equal", xticks=[], yticks=[])
        if method != "none":
            axes.set(xlim=(-4, 4), ylim=(-4, 4))


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
        colour = PALE if title in ("images", "cache") else "#ffffff"
        box = FancyBboxPatch((at * 2 + 0.1, 0.9), 1.5, 0.9, "round,pad=0.05", fc=colour, ec=INK)
        axes.add_patch(box)
        axes.text(at * 2 + 0.85, 1.5, title, ha="center", weight="bold")
        axes.text(at * 2 + 0.85, 1.0, below, ha="center", fontsize=7)
        if at < 4:
            arrow = {"arrowstyle": "->", "color": INK}
            axes.annotate("", (at * 2 + 2.05, 1.35), (at * 2 + 1.65, 1.35), arrowprops=arrow)
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
    """Which rows of which shards the first batches take, in both orders."""
    random = np.random.default_rng(0)
    for axes, order in zip(figure.subplots(1, 2), ("full", "block"), strict=True):
        rows = np.arange(1024)
        if order == "full":
            rows = random.permutation(rows)
        else:  # shards at random, rows mixed within windows of them
            shards = random.permutation(64).reshape(-1, 16)
            rows = np.concatenate(
                [random.permutation((w[:, None] * 16 + np.arange(16)).ravel()) for w in shards]
            )
        axes.plot(
            np.arange(1024), rows // 16, ".", color=COLOURS[0], markersize=1.5, rasterized=True
        )
        axes.set(title=f"order = {order}", xlabel="place in the epoch", xticks=[], yticks=[])
        axes.set_ylabel("shard")


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


def blank(figure: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=x, ylim=y)
    axes.set_axis_off()
    return axes


SIZES = {normalizers: (8, 2.3), way: (8, 2.1), workers: (8, 2.0), orders: (8, 2.4), views: (8, 2.0)}


def main() -> None:
    """Each drawing, on white, so that it can be read in the dark too."""
    OUT.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw, size in SIZES.items():
            figure = Figure(figsize=size, facecolor="white", layout=None)
            draw(figure)
            where = OUT / f"{draw.__name__}.svg"
            figure.savefig(
                where, metadata={"Date": None}, dpi=120, bbox_inches="tight", pad_inches=0.1
            )
            # Lines that matplotlib ends with a space.
            text = "\n".join(line.rstrip() for line in where.read_text("utf-8").splitlines())
            where.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
