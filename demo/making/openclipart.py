"""Reads Debian's openclipart-png: which drawings are usable, their pixels with alpha, their words.

A drawing is usable when it is a regular file outside `shapes/stars` (1,378 generated stars),
decodes, and is neither tiny nor empty once cropped to the box of its alpha. Symlinks point to files
of the same tree under a second category, so following them would give one drawing two labels: they
are skipped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SKIPPED_FOLDERS = ("shapes/stars",)
LONG_SIDE = 96
"""Longest side of a thumbnail, in pixels; smaller drawings are kept as they are."""

MIN_SIDE = 16
"""A drawing whose longer cropped side is below this says too little at 48 pixels."""

MIN_COVERAGE = 0.02
"""Smallest mean alpha of a cropped drawing: below it there is nothing to see."""

VISIBLE_ALPHA = 8
"""Alpha from which a pixel counts for the crop box: soft shadows fade out below it."""

# File names read title_author_number, cut at a fixed length, so that authors come truncated in many
# ways; the first word of the frequent ones is enough to cut the tail off.
_AUTHORS = (
    "architetto archite architet ganson benji nicu jon gerald jarno juliane linda yves jean "
    "victor dave susan fudriot omic mimooh zazou mateya christoph nathan anthony aj jonathan "
    "yen toh michael dirk stefan montes matthew luiz sergio dennis brice mauro guillaume costea "
    "leif steele charles marcelo frederic wolfram nicolas fitzsimon andy cedric roman matt "
    "tanguy silhouet arjen jakob frouke peterm enrique meza joel daniel valessio etienne ruairi "
    "rg orlando andrea risto kexi snuatautisticido lumen francesco paolo pedro"
)
AUTHOR_STARTS = frozenset(_AUTHORS.split())
MIN_CUT = 4
"""Letters from which the start of an author's first name is taken for a name that was cut off."""

_NOISE = "bw bwh png svg the of and with drawn strai new mo ol gnome kde ge ger fr fra fran fc elem"
NOISE_WORDS = frozenset(_NOISE.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One usable drawing of the package."""

    path: str
    """Relative to the root of the package's PNGs, with forward slashes."""

    name: str
    """Words of the file name, without author, number and noise; may be empty."""

    folders: str
    """Words of the folders, outermost first."""

    category: str
    """Outermost folder."""

    rgba: Image.Image
    """Mode RGBA, cropped to its alpha, longest side at most LONG_SIDE."""


def words_of(text: str) -> list[str]:
    """Lower-case words of two letters or more, in order, without repetition.

    >>> words_of("Dog_06_drawn-JumpingDog")
    ['dog', 'jumping']
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = re.findall(r"[a-z]{2,}", spaced.lower())
    return [w for w in dict.fromkeys(words) if w not in NOISE_WORDS]


def title_words(stem: str) -> list[str]:
    """Words of a file name up to the author's name, which never comes first."""
    words = words_of(stem)
    for i, word in enumerate(words):
        if i and is_author(word):
            return words[:i]
    return words


def is_author(word: str) -> bool:
    """Whether a word is the first name of a frequent author or the cut-off start of one."""
    if word in AUTHOR_STARTS:
        return True
    cut = len(word) >= MIN_CUT and word not in ("arch", "france", "wolf")
    return cut and any(author.startswith(word) for author in AUTHOR_STARTS)


def crop_to_alpha(image: Image.Image) -> Image.Image | None:
    """Crop RGBA to the box where alpha reaches VISIBLE_ALPHA; None when that leaves too little."""
    alpha = image.getchannel("A")
    box = alpha.point([255 * (a >= VISIBLE_ALPHA) for a in range(256)]).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        return None
    cropped = image.crop(box)
    coverage = float(np.asarray(cropped.getchannel("A"), dtype=np.float64).mean()) / 255
    return cropped if coverage >= MIN_COVERAGE else None


def shrink(image: Image.Image, long_side: int = LONG_SIDE) -> Image.Image:
    """Resize so that the longest side is at most `long_side`, on premultiplied colours.

    Without premultiplying, the colour hidden under alpha 0 (mostly black) bleeds into the outline.
    """
    scale = long_side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small.convert("RGBA")


def read_drawing(root: Path, path: Path) -> Drawing | None:
    """Read one PNG; None when it is tiny, empty or does not decode."""
    relative = path.relative_to(root)
    try:
        with Image.open(path) as file:
            image = file.convert("RGBA")
    except OSError:
        return None
    cropped = crop_to_alpha(image)
    if cropped is None:
        return None
    return Drawing(
        path=relative.as_posix(),
        name=" ".join(title_words(path.stem)),
        folders=" ".join(dict.fromkeys(w for part in relative.parts[:-1] for w in words_of(part))),
        category=relative.parts[0],
        rgba=shrink(cropped),
    )


def candidate_paths(root: Path) -> list[Path]:
    """Regular PNG files below `root` in sorted order, without symlinks and generated stars."""
    return sorted(
        path
        for path in root.rglob("*.png")
        if not path.is_symlink()
        and not path.relative_to(root)
        .as_posix()
        .startswith(tuple(f"{f}/" for f in SKIPPED_FOLDERS))
    )


def drawings(root: Path) -> Iterator[Drawing]:
    """All usable drawings below `root`, in sorted order of their paths."""
    for path in candidate_paths(root):
        drawing = read_drawing(root, path)
        if drawing is not None:
            yield drawing


def encode_webp(image: Image.Image, quality: int = 80) -> bytes:
    """WebP with lossy colours and exact alpha.

    Method 4: 6 takes a hundred times longer on the alpha and saves 2 % of the bytes.
    """
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, alpha_quality=100, method=4)
    return out.getvalue()
