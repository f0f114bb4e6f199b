"""Matplotlib figures as inline SVG that takes the page's fonts and colours.

A figure is drawn in marker colours (INKS); in the SVG they become CSS variables, so that one
drawing serves light, dark and paper. Nothing in it refers outside: no document type, metadata,
namespace address or style sheet of its own, and every id carries the figure's name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.8, 2.7
"""Inches of a figure: at 72 units per inch and a font of 9 it is legible at a phone's width."""

FONT_SIZE = 9.0
NUM_SERIES = 6
"""Colours of teachers, and as many of runs; further teachers begin again."""

DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.6, 1.2, 1.6)))
"""Of the first settings that share their colours with others, of the second, ...; the page's
swatches and bars follow with the classes dash-0, dash-1, ..."""

INK, MUTED, GRID = "#0e0001", "#0e0002", "#0e0003"
TEACHERS = tuple(f"#0a00{i:02x}" for i in range(1, NUM_SERIES + 1))
RUNS = tuple(f"#0b00{i:02x}" for i in range(1, NUM_SERIES + 1))
INKS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--teacher-{i})" for i, colour in enumerate(TEACHERS, 1)},
    **{colour: f"var(--run-{i})" for i, colour in enumerate(RUNS, 1)},
}
"""Marker colour to what stands for it in the page."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": FONT_SIZE,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.minor.visible": False,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


def teacher_colour(number: int) -> str:
    """Marker colour of the cache's teacher ``number`` (0 is the first)."""
    return TEACHERS[number % NUM_SERIES]


def run_colour(number: int) -> str:
    """Marker colour of the report's setting ``number``."""
    return RUNS[number % NUM_SERIES]


def run_dash(number: int) -> int:
    """Place in DASHES of the report's setting ``number``: unlike any of the other
    NUM_SERIES * len(DASHES) first settings by its colour or its dash."""
    return number // NUM_SERIES % len(DASHES)


class Canvas:
    """One pair of axes: ``with Canvas() as canvas: canvas.axes.plot(...); canvas.svg(...)``."""

    def __init__(self, width: float = WIDTH, height: float = HEIGHT) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context(_STYLE)
        self._make, self._size = Figure, (width, height)

    def __enter__(self) -> Canvas:
        # Figure without pyplot draws through Agg or SVG alone: no window, no global state.
        self._context.__enter__()
        self.figure: Figure = self._make(figsize=self._size, layout="constrained")
        self.figure.patch.set_visible(False)
        self.axes: Axes = self.figure.add_subplot()
        self.axes.patch.set_visible(False)
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def log_axis(self, axis: str, values: Sequence[float] | np.ndarray) -> None:
        """A logarithmic axis around ``values`` with plain numbers (0.01, 1, 1e-05) on it."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

        low, high = float(np.min(values)), float(np.max(values))
        pad = max((high / low) ** 0.06, 1.15)
        if axis == "x":
            self.axes.set_xscale("log")
            self.axes.set_xlim(low / 1.1, high * 1.1)
        else:
            self.axes.set_yscale("log")
            self.axes.set_ylim(low / pad, high * pad)
        which = self.axes.xaxis if axis == "x" else self.axes.yaxis
        decades = np.log10(high / low)
        fine = range(1, 10) if decades < 0.6 else (1, 2, 5) if decades < 1.5 else (1,)
        which.set_major_locator(LogLocator(subs=tuple(map(float, fine)), numticks=7))
        which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        which.set_minor_locator(NullLocator())
        which.set_minor_formatter(NullFormatter())

    def svg(self, name: str, label: str) -> str:
        """The figure as an <svg> element; ``label`` is what a screen reader says."""
        file = io.StringIO()
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": name}):
            self.figure.savefig(file, format="svg", metadata={"Date": None})
        return inline(file.getvalue(), name, label)


def inline(document: str, name: str, label: str) -> str:
    """An SVG document of matplotlib's as an element of a page."""
    body = document[document.index("<svg") :].strip()
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*<!--.*?-->", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None, "matplotlib always writes a viewBox"
    body = body[body.index(">") + 1 :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in INKS.items():
        body = body.replace(colour, variable)
    head = f'<svg viewBox="{box.group(1)}" role="img" aria-label="{_quoted(label)}">'
    return head + re.sub(r"\n\s*", "\n", body)


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
