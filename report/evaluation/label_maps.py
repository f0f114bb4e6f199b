"""Label maps of a cache's images, in the view that the cache has of them: a file beside each image,
or the images' own transparency."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.errors import UsageError
from phistill.pipeline.decode.views import Rendering, View, render
from phistill.pipeline.images.listings import last_listing
from phistill.pipeline.images.open_source import opened
from phistill.pipeline.images.source import DEFAULTS
from phistill.train.data.stream import Rows
from phistill.train.evaluation.mask_scores import ReadMaps

ALPHA = "alpha:"
"""Before IMAGES: their transparency is the map, of 0 (see through) and 1."""

NOT_COUNTED = 255
"""The class of pixels that are not counted, as in Pascal VOC and Cityscapes."""

Load = Callable[[str, str, int, int], Image.Image | None]
"""By id, uri, offset and length of an image; None where it has no map."""


@contextmanager
def label_maps(where: str, first: Cache) -> Iterator[ReadMaps]:
    """Reads maps: of a folder that holds ``ID.png`` for images named ``ID.jpg``, or of
    ``alpha:IMAGES``, the images that ``first`` was made from."""
    if where.startswith(ALPHA):
        images = where.removeprefix(ALPHA)
        with opened(images, DEFAULTS, last_listing(first)) as source:
            yield _reader(lambda _, uri, offset, length: _alpha(source.read(uri, offset, length)))
        return
    folder = Path(where)
    if not folder.is_dir():
        raise UsageError(
            f"--masks {where}: no such folder. Give one of label maps, or {ALPHA}IMAGES."
        )
    yield _reader(lambda name, *_: _from_file(folder, name))


def _reader(load: Load) -> ReadMaps:
    def read(caches: JoinedCaches, rows: Rows) -> Int[np.ndarray, "n s s"]:
        side = caches.caches[0].info.pixel_size
        found = np.full((len(rows), side, side), -1, np.int16)
        number = np.searchsorted(np.asarray(caches.starts), rows, side="right") - 1
        for which, cache in enumerate(caches.caches):
            places = np.flatnonzero(number == which)
            found[places] = _of_cache(cache, rows[places] - caches.starts[which], side, load)
        return found

    return read


def _of_cache(cache: Cache, rows: Rows, side: int, load: Load) -> NDArray[np.int16]:
    views = [View.from_dict(view) for view in cache.info.views]
    if drawn := [str(view) for view in views if view.is_random]:
        raise UsageError(
            f"--masks: {cache.location} shows views that are drawn at random ({', '.join(drawn)}), "
            "in which a map cannot be laid. Take a cache of resize or center-crop."
        )
    found = np.full((len(rows), side, side), -1, np.int16)
    columns = ["id", "uri", "offset", "length", "view"]
    for place, line in enumerate(cache.lines(rows, columns).to_pylist()):
        image = load(line["id"], line["uri"], line["offset"], line["length"])
        if image is not None:
            where = views[line["view"]].place(image.size, seed=0, image_id="", number=0)
            shown = render(image, where, Rendering((side, side), "nearest")).astype(np.int16)
            found[place] = np.where(shown == NOT_COUNTED, -1, shown)
    return found


def _from_file(folder: Path, name: str) -> Image.Image | None:
    path = (folder / name).with_suffix(".png")
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"--masks: {path} cannot be read ({error}).") from error
    if image.mode not in ("L", "P", "1"):
        raise UsageError(
            f"--masks: {path} is an image of mode {image.mode}; a label map has one channel, or a "
            f"palette, of class numbers; {NOT_COUNTED} is not counted."
        )
    return image.convert("L") if image.mode == "1" else image


def _alpha(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGBA").getchannel("A").point(lambda level: int(level > 127))
