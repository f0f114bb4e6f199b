"""The charts of the pages: python docs/making/charts.py writes docs/pictures/*.svg.

Figures come from tables of the pages and of benchmarks/results/; phistill computes what it can.
"""

from __future__ import annotations

import re

import numpy as np
from drawing import COLOURS, DOCS, INK, save
from matplotlib.figure import Figure

from phistill.stats import Moments, Normalizer

IMAGENET = 1_281_167


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
        side = 9 if method == "none" else 4
        axes.set(title=title, xlim=(-side, side), ylim=(-side, side), aspect="equal")
        axes.set(xticks=[], yticks=[])


def conditioned(figure: Figure) -> None:
    """64 channels of a simulated encoder, before and after PHI-S: mean and three deviations."""
    random = np.random.default_rng(2)
    std, mean = np.exp(random.normal(size=64) * 0.7), random.normal(size=64) ** 3 * 4
    tokens = random.normal(size=(4096, 64)) * std + mean
    fitted = Normalizer.fit(Moments.of(tokens), method="phi-s")
    shown = {"as they come": tokens, "conditioned": fitted.transform(tokens)}
    for axes, (title, values) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        spread = 3 * values.std(0)
        axes.errorbar(range(64), values.mean(0), spread, fmt=".", color=COLOURS[0], elinewidth=1)
        axes.set(title=title, xlabel="channel", xticks=[])


def recall(figure: Figure) -> None:
    """recall@10 against bytes of a vector, as benchmarks/codes measured it."""
    found = re.findall(
        r"^\| \d+ \| ([\w ]+) \| (\d+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$",
        measured("codes"), re.MULTILINE,
    )  # fmt: skip
    axes = figure.subplots()
    marks = zip(dict.fromkeys(name for name, _, _ in found), COLOURS, "osD^", strict=True)
    for name, colour, mark in marks:
        at = [(int(size), float(share)) for one, size, share in found if one == name]
        label = "phistill" if name == "ours" else name
        axes.plot(*zip(*at, strict=True), marker=mark, color=colour, label=label)
    axes.set(xlabel="bytes of a vector of 512", ylabel="recall@10", xticks=[16, 32, 64])
    axes.set(ylim=(0.3, 1.02))
    axes.legend(frameon=False, loc="lower right")


def teachers(figure: Figure) -> None:
    """Kilobytes of an image, of each model in the table of the page."""
    bars(figure, {name: size / 1000 for name, size in sizes().items()}, "kB per image", log=True)


def imagenet(figure: Figure) -> None:
    """The disk that ImageNet-1k's training images take, for some of the models."""
    wanted = (
        "vit_small_patch14_reg4",
        "vit_large_patch14_reg4",
        "vit_so400m",
        "ViT-B-32/laion2b_s34b",
    )
    shown = {name: size for name, size in sizes().items() if any(one in name for one in wanted)}
    shown["pixels, 224"] = 224 * 224 * 3
    bars(figure, {name: size * IMAGENET / 1e9 for name, size in shown.items()}, "GB", log=False)


def four(figure: Figure) -> None:
    """Bytes and operations of the recipe's four teachers, per image."""
    lines = rows("recipes/four-teachers.md", "| teacher | what is stored")[:-1]
    names = [line[0].split(",")[0] for line in lines]
    for axes, column, title in zip(figure.subplots(1, 2), (2, 3), ("kB", "GFLOP"), strict=True):
        values = [float(line[column].replace(",", "") or 0) for line in lines]
        scale = 1000 if column == 2 else 1
        axes.barh(names[::-1], [one / scale for one in values[::-1]], color=COLOURS[column - 2])
        axes.set(xlabel=f"{title} per image")
        if column == 3:
            axes.set_yticks([])
    figure.subplots_adjust(wspace=0.08)


def methods(figure: Figure) -> None:
    """Errors of each teacher's patches under the methods that were tried on the demo."""
    lines = rows("../benchmarks/results/methods-2026-11-26.md", "| setting | seeds")
    lines = [line for line in lines if line[3][:1] == "0"]
    for axes, column, teacher in zip(
        figure.subplots(1, 3, sharey=True), (3, 4, 5), ("clip", "ssl", "mask"), strict=True
    ):
        for at, line in enumerate(lines):
            error, half = (float(one.split()[0]) for one in line[column].split(" ± "))
            colour = COLOURS[0] if "phi-s" in line[0] else INK
            axes.errorbar(error, -at, xerr=half, fmt="o", markersize=4, color=colour, capsize=3)
        axes.set(title=teacher, xlabel="error of patches")
        axes.set_yticks([-at for at in range(len(lines))], [line[0] for line in lines])


def scale(figure: Figure) -> None:
    """CPU seconds to open a cache and to start a run, against rows."""
    lines = rows("scale.md", "| rows | open")[:2]
    axes = figure.subplots()
    millions = [float(line[0].split()[0]) for line in lines]
    for column, name, colour in (
        (1, "open", COLOURS[0]),
        (2, "inspect", COLOURS[3]),
        (3, "train to its first batch", COLOURS[1]),
    ):
        axes.plot(millions, [float(line[column]) for line in lines], "o-", color=colour, label=name)
    axes.set(xlabel="million rows of 8 teachers", ylabel="CPU seconds", ylim=(0, None))
    axes.legend(frameon=False)


def epochs(figure: Figure) -> None:
    """Operations of the four-teacher recipe, with teachers in every step and from a cache."""
    teacher = float(
        rows("recipes/four-teachers.md", "| teacher | what is stored")[-1][3]
        .strip("*")
        .replace(",", "")
    )
    student = 3 * 12.0  # forward and backward of a ViT-S with 256 tokens
    at = np.arange(0, 31)
    axes = figure.subplots()
    axes.plot(at, at * (teacher + student) / 1000, color=COLOURS[1], label="teachers in every step")
    axes.plot(at[1:], (teacher + at[1:] * student) / 1000, color=COLOURS[0], label="from a cache")
    axes.set(xlabel="epochs, of all runs together", ylabel="TFLOP per image")
    axes.legend(frameon=False)


def bars(figure: Figure, values: dict[str, float], unit: str, *, log: bool) -> None:
    axes = figure.subplots()
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=COLOURS[0], height=0.7)
    for at, name in enumerate(names):
        axes.text(values[name] * 1.02, at, f" {values[name]:,.0f}", va="center", fontsize=7)
    axes.set(xlabel=unit, xscale="log" if log else "linear")
    axes.tick_params(axis="y", labelsize=7)


def sizes() -> dict[str, int]:
    """Bytes per image by model, from the page of teachers."""
    found = {}
    for line in rows("teachers.md", "| teacher | input"):
        name = re.sub(r"&?size=\d+", "", line[0].strip("`")).rstrip("?")
        found[name] = int(line[5].replace(",", ""))
    return found


def rows(page: str, head: str) -> list[list[str]]:
    """Cells of the lines of a page's table that begins with ``head``."""
    text = (DOCS / page).read_text("utf-8")
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[0] == "|"
    ]


def measured(what: str) -> str:
    """The newest results of a benchmark."""
    results = DOCS.parent / "benchmarks" / "results"
    return max(results.glob(f"{what}-20*.md")).read_text("utf-8")


CHARTS = {
    normalizers: (8, 2.3),
    conditioned: (8, 2.2),
    recall: (6, 2.6),
    teachers: (7, 4.6),
    imagenet: (6, 1.8),
    four: (8, 1.7),
    methods: (8, 2.5),
    scale: (6, 2.3),
    epochs: (6, 2.4),
}

if __name__ == "__main__":
    save(CHARTS)
