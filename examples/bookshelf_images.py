"""An image source of your own: the pages of comic books, zip files of images, never unpacked.

phistill extract 'module:bookshelf_images:open_shelf?folder=books' --cache c --teacher ...
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa

from phistill.errors import SourceError, UsageError
from phistill.pipeline import ImageSource, image_records

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Bookshelf(ImageSource):
    """The pages of every ``.cbz`` in a folder; a page's label is its book."""

    kind = "comic books"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def records(self) -> pa.Table:
        ids: list[str] = []
        labels: list[str] = []
        for book in sorted(self._folder.glob("*.cbz")):
            with zipfile.ZipFile(book) as pages:
                names = [name for name in pages.namelist() if name.lower().endswith(SUFFIXES)]
            ids += [f"{book.name}/{name}" for name in sorted(names)]
            labels += [book.stem] * len(names)
        if not ids:
            raise UsageError(f"{self._folder} holds no .cbz with images.")
        return image_records(ids, labels=labels)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        book, _, page = uri.partition("/")
        try:
            with zipfile.ZipFile(self._folder / book) as pages:
                return pages.read(page)
        except (zipfile.BadZipFile, KeyError) as error:
            raise SourceError(f"{self._folder / book}: {page} cannot be read: {error}.") from error


def open_shelf(rest: str, options: dict[str, str]) -> ImageSource:
    """``rest`` is what follows a registered name; with ``module:`` it is empty."""
    folder = options.get("folder") or rest
    if not folder:
        raise UsageError(
            "name the folder of the books: module:bookshelf_images:open_shelf?folder=books."
        )
    return Bookshelf(Path(folder))
