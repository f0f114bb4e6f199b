"""What the drawings of the pages are made of: colours, boxes, arrows, and a file without a date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parent.parent
OUT = DOCS / "pictures"
INK, PALE = "#333333", "#e8eaf6"
COLOURS = ("#3f51b5", "#c2410c", "#0f766e", "#a16207")
STYLE = {
    "svg.hashsalt": "phistill",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Draw = Callable[[Figure], None]


def blank(figure: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    """Axes that fill the figure and show nothing of themselves."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=x, ylim=y)
    axes.set_axis_off()
    return axes


def box(
    axes: Axes, at: tuple[float, float], title: str, below: str = "", *, filled: bool = False,
    size: tuple[float, float] = (1.5, 0.9),
) -> None:  # fmt: skip
    """A named box, its lower left corner at ``at``."""
    (x, y), (width, height) = at, size
    colour = PALE if filled else "#ffffff"
    axes.add_patch(FancyBboxPatch(at, width, height, "round,pad=0.05", fc=colour, ec=INK))
    line = y + height - 0.3 if below else y + height / 2 - 0.1
    axes.text(x + width / 2, line, title, ha="center", weight="bold")
    axes.text(x + width / 2, y + 0.1, below, ha="center", fontsize=7)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK})


def save(drawings: Mapping[Draw, tuple[float, float]]) -> None:
    """Each in its size (inches), on white, so that it can be read in the dark too."""
    OUT.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw, size in drawings.items():
            figure = Figure(figsize=size, facecolor="white", layout=None)
            draw(figure)
            where = OUT / f"{draw.__name__}.svg"
            figure.savefig(
                where, metadata={"Date": None}, dpi=120, bbox_inches="tight", pad_inches=0.1
            )
            # Lines that matplotlib ends with a space.
            text = "\n".join(line.rstrip() for line in where.read_text("utf-8").splitlines())
            where.write_text(text + "\n", "utf-8")
