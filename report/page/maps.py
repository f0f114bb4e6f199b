"""PCA maps: patch features seen through their teacher's first three principal components.

A feature x becomes the colour 1/2 + (x - m).u_k / (2 REACH sqrt(l_k)) for k = red, green, blue,
with the training mean m and the leading eigenpairs (l_k, u_k) of the teacher. Student and teacher
go through the same projection, so mid-grey is the mean for both, and the student has the teacher's
colours where it has its features in those three directions.

n images, T tokens, h w grid, c channels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from phistill.cache import Cache
from phistill.cache.format.names import PIXELS
from phistill.cache.joined import open_caches
from phistill.train.evaluation.index import images_of

from .gather import MAP_AXES, PATCHES, PatchFacts
from .settings import Setting

REACH = 2.0
"""Standard deviations of a component between grey and full colour: 95 % of Gaussian features."""

SIDE = 128
"""Least side in pixels of a drawn map; tokens become whole squares, so no viewer blurs them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Strip:
    """One row of pictures, one per image: the images, a teacher's maps, or a student's."""

    label: str
    setting: str
    """Of a student; empty for images and teachers."""

    pictures: tuple[UInt8[np.ndarray, "h w 3"], ...]

    @property
    def uris(self) -> tuple[str, ...]:
        """The pictures as PNG data URIs."""
        return tuple(png_uri(enlarged(picture)) for picture in self.pictures)


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherMaps:
    """The strips of one teacher, below each other."""

    teacher: str
    strips: tuple[Strip, ...]


def colours(facts: PatchFacts, x: Float[np.ndarray, "n T c"]) -> UInt8[np.ndarray, "n h w 3"]:
    """The map of raw features in the teacher's space; components the teacher lacks stay grey."""
    h, w = facts.grid
    scores = (x.astype(np.float64) - facts.mean) @ facts.axes  # (n, T, k)
    spread = np.sqrt(facts.eigenvalues[: facts.axes.shape[1]])
    scaled = np.divide(scores, 2 * REACH * spread, out=np.zeros_like(scores), where=spread > 0)
    shade = np.full((*scores.shape[:2], MAP_AXES), 0.5)
    shade[..., : scaled.shape[-1]] += scaled
    return np.rint(np.clip(shade, 0, 1) * 255).astype(np.uint8).reshape(len(x), h, w, MAP_AXES)


def gather_maps(
    cache: Cache,
    patches: Sequence[PatchFacts],
    settings: Sequence[Setting],
    rows: Int[np.ndarray, " n"],
) -> tuple[TeacherMaps, ...]:
    """By teacher: the images of ``rows``, its own maps, those of each setting's middle seed."""
    if not rows.size or not cache.info.pixel_size:
        return ()
    pixels = cache.reader(PIXELS, PIXELS).read(rows)
    images = Strip(label="image", setting="", pictures=tuple(pixels))
    predicted = [(one.name, one.middle.student.predict(pixels)) for one in settings]
    teachers = []
    for facts in patches:
        features = cache.reader(facts.teacher, PATCHES).read(rows)
        own = Strip(label="teacher", setting="", pictures=tuple(colours(facts, features)))
        strips = [images, own]
        for name, prediction in predicted:
            kinds = prediction.get(facts.teacher, {})
            if PATCHES in kinds:
                maps = colours(facts, kinds[PATCHES].cpu().numpy())
                strips.append(Strip(label="student", setting=name, pictures=tuple(maps)))
        teachers.append(TeacherMaps(teacher=facts.teacher, strips=tuple(strips)))
    return tuple(teachers)


def worst_rows(cache: Cache, one: Setting, teacher: str, num: int) -> Int[np.ndarray, " n"]:
    """The held-out rows whose patches a setting predicts worst, the worst first."""
    line = one.row(teacher, PATCHES)
    if line is None or line.columns is None or not num:
        return np.empty(0, np.int64)
    rows = cache.rows(list(one.middle.student.facts["teachers"]), split="heldout")
    _, first = np.unique(images_of(open_caches(cache), rows), return_index=True)
    if len(first) != len(line.columns):
        return np.empty(0, np.int64)
    return rows[first[np.argsort(-line.columns[:, 0], kind="stable")[:num]]]


def enlarged(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel as a square of the same whole size, the shorter side at least SIDE."""
    factor = -(-SIDE // min(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def png_uri(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as ``data:image/png;base64,...``."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
