"""Two images through the smallest model of every family of timm: what works, what is refused.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/timm_families.py [--page PAGE.md]

Weights are random, so nothing is downloaded. A family is what a module of timm registers under one
name (``eva`` has ``eva`` and ``vit``); its smallest model is counted on torch's meta device. Each
line is written when it is known, and a family that has a line is not tried again: the run can be
stopped and goes on. ``--again TEXT`` tries those once more whose line holds TEXT.

Beside the shapes each line says whether the patches lie where the picture shows them: two corners
are painted over, one at a time, and the quarters of the patches that answer to each are looked for.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import phistill.cache as store
from phistill.errors import PhistillError, TeacherError
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.teachers.check import two_images
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec

LARGE = 320
"""Models of a larger input are run at SMALL where they can be."""
SMALL = 224
PAGE = Path(__file__).parent / "results" / "timm-families.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = (
    "| family | smallest model | input | grid | patches | summary | outcome |\n"
    "|---|---|---|---|---|---|---|"
)


def families() -> dict[str, list[str]]:
    """``module/name`` to the models of it; timm's own test models belong to none."""
    from timm.models._registry import _model_to_module

    found: defaultdict[str, list[str]] = defaultdict(list)
    for model in timm.list_models():
        name = re.match("[a-z]+", model)
        if name is not None and name[0] != "test":
            found[f"{_model_to_module[model]}/{name[0]}"].append(model)
    return dict(sorted(found.items()))


def smallest(models: list[str]) -> str:
    """The model with the fewest parameters; the first by name among those of timm that cannot be
    built as shapes alone."""
    counts = []
    for model in models:
        try:
            with torch.device("meta"):
                net = timm.create_model(model, num_classes=0)
        except (RuntimeError, NotImplementedError, ValueError, AssertionError):
            continue
        counts.append((sum(value.numel() for value in net.parameters()), model))
    return min(counts)[1] if counts else models[0]


def specs_of(model: str) -> Iterator[str]:
    """The model at its own input, or smaller where that is large, in the order of trying."""
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    side = max(config.input_size[1:]) if config is not None else SMALL
    if side > LARGE:
        yield f"timm:{model}?random=0&size={SMALL}"
        yield f"timm:{model}?random=0&size=256"
    yield f"timm:{model}?random=0"


def line(family: str, model: str, folder: Path) -> str:
    """One row of the table."""
    outcome = ""
    for spec in specs_of(model):
        try:
            return f"| `{family}` | `{model}` | {extracted(spec, folder)} |"
        except PhistillError as error:
            outcome = f"refused: {error}"
        except Exception as error:  # what a line is about: no model may end so
            traceback.print_exc()
            outcome = f"TRACEBACK {type(error).__name__}: {error}"
    words = " ".join(outcome.replace("|", "/").split())
    return f"| `{family}` | `{model}` | - | - | - | - | {words[:400]} |"


def extracted(spec: str, folder: Path) -> str:
    """Input, grid, patches, summary and outcome, from a cache that ``extract`` wrote."""
    with tempfile.TemporaryDirectory(dir=folder) as cache_folder:
        report = extract(
            folder / "images",
            Path(cache_folder) / "one.cache",
            [f"teacher={spec}"],
            settings=CacheSettings(pixel_size=0, holdout=0.0),
        )
        if report.rejects:
            raise TeacherError(f"both images are rejected: {report.rejects[0][1]}")
        cache = report.cache
        info = store.open(cache.path).teacher("teacher")
        values = cache.reader("teacher", "patches").read(cache.rows(split="all"))
        if values.shape != (2, *info.row_shape("patches")):
            raise AssertionError(f"{values.shape} in the cache, {info.row_shape('patches')} stated")
    height, width = info.identity["preprocessing"]["size"]
    summary = str(info.width("summary")) if "summary" in info.kinds else "-"
    return (
        f"{height} x {width} | {info.grid[0]} x {info.grid[1]} | "
        f"{info.num_tokens} x {info.width('patches')} | {summary} | {placed(spec, info.grid)}"
    )


def placed(spec: str, grid: tuple[int, int]) -> str:
    """``works``, and where a painted corner is not seen if it is not in its own corner."""
    if min(grid) < 2:
        return "works"
    teacher: Any = TeacherSpec.parse(spec).build()
    settled(teacher.model, teacher.preprocessing().size)
    runner = TeacherRunner("teacher", spec, teacher, torch.device("cpu"))
    height, width = runner.rendering.size
    painted = np.concatenate([two_images((height, width))[:1]] * 3)
    painted[1, : height // 3, -width // 3 :] = (255, 0, 0)
    painted[2, -height // 3 :, : width // 3] = (255, 0, 0)
    patches = runner.forward(painted).patches.float()
    right, left = ((patches[n] - patches[0]).norm(dim=-1).double() for n in (1, 2))  # (h, w)
    if float(torch.minimum(right, left).max()) == 0:
        return "works; these random weights see no place"
    # Random weights answer to some places more than to others: the two changes are compared.
    more = (right + 1e-30).log() - (left + 1e-30).log()
    half_h, half_w = grid[0] // 2, grid[1] // 2
    quarters = {
        "top left": more[:half_h, :half_w],
        "top right": more[:half_h, -half_w:],
        "bottom left": more[-half_h:, :half_w],
        "bottom right": more[-half_h:, -half_w:],
    }
    means = {name: float(values.mean()) for name, values in quarters.items()}
    seen = max(means, key=lambda n: means[n]), min(means, key=lambda n: means[n])
    if seen == ("top right", "bottom left"):
        return "works"
    return f"works; top right and bottom left seen at {seen[0]} and {seen[1]}"


def settled(net: torch.nn.Module, size: tuple[int, int]) -> None:
    """Give batch norms the statistics of four pictures, and a weight where it begins at zero:
    without them random features grow from layer to layer until no place is told from another."""
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average
            if module.weight is not None and not module.weight.any():
                torch.nn.init.ones_(module.weight)
    pixels = torch.from_numpy(np.concatenate([two_images(size)] * 2)).permute(0, 3, 1, 2)
    net.train()
    with torch.no_grad():
        net(pixels / 127.5 - 1 + 0.1 * torch.randn(4, 3, *size))
    net.eval()


def done(page: Path, again: str | None) -> dict[str, str]:
    """Lines of the page by family, without those to be tried again."""
    text = page.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    return {name: row for name, row in lines.items() if again is None or again not in row}


def write(page: Path, lines: dict[str, str]) -> None:
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    table = "\n".join([HEAD, *(lines[name] for name in sorted(lines))])
    num_working = sum(row.split(" | ")[-1].startswith("works") for row in lines.values())
    count = f"{num_working} of {len(lines)} families work, with timm {timm.__version__}."
    page.write_text(f"{before}{BEGIN}\n{count}\n\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--again", help="Try families again whose line holds this.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = done(arguments.page, arguments.again)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, pixels in enumerate(two_images((240, 320))):
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for family, models in families().items():
            if family not in lines:
                lines[family] = line(family, smallest(models), folder)
                write(arguments.page, lines)
                print(lines[family], flush=True)
    if any("TRACEBACK" in row for row in lines.values()):
        sys.exit("A model ended in a traceback.")


if __name__ == "__main__":
    main()
