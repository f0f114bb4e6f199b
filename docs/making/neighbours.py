"""The picture of the tutorial: drawings, and those that its student finds most like them.

python docs/making/neighbours.py FOLDER, where FOLDER is where the tutorial was followed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import normalize

from phistill import load_student

WANTED = ("evergreen_plain", "jigsaw_red_01", "pear", "mosquito")
SIDE, GAP, COLUMNS = 96, 12, 6
OUT = Path(__file__).parent.parent / "neighbours.webp"


def main(folder: Path) -> None:
    """A row per drawing: itself, then its neighbours, the nearest first."""
    student = load_student(folder / "student")
    files = sorted((folder / "photos" / "heldout").rglob("*.webp"))
    pictures = torch.stack([student.preprocess(Image.open(file)) for file in files])
    with torch.inference_mode():
        summaries = normalize(student(pictures)["clip"].summary, dim=1)
    step = SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * step + GAP, len(WANTED) * step), "white")
    for row, wanted in enumerate(WANTED):
        at = next(at for at, file in enumerate(files) if wanted in file.name)
        nearest = (summaries @ summaries[at]).topk(COLUMNS).indices.tolist()
        for column, found in enumerate(nearest):
            left = column * step + (GAP if column else 0)
            sheet.paste(_shown(files[found]), (left, row * step))
    sheet.save(OUT, quality=80)


def _shown(file: Path) -> Image.Image:
    """On grey, as the student sees it, in its own proportions."""
    drawing = Image.open(file).convert("RGBA")
    drawing.thumbnail((SIDE, SIDE))
    square = Image.new("RGBA", (SIDE, SIDE), (225, 225, 225, 255))
    place = ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2)
    square.alpha_composite(drawing, place)
    return square.convert("RGB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
