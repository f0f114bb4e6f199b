"""What an image source is: a record of each image, and the bytes of one when asked.

A source of your own implements ``records`` and ``read``; the rest has defaults. Names from a source
are only ever identifiers: nothing is written under them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from phistill.errors import UsageError

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("apng", "avif", "avifs", "bmp", "bw", "dib", "gif", "heic", "heif", "hif", "ico", "icb"),
        *("j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx", "mpo", "pbm"),
        *("pcx", "pgm", "png", "pnm", "ppm", "qoi", "rgb", "rgba", "sgi", "tga", "tif", "tiff"),
        *("vda", "vst", "webp"),
    )
)
"""Of what is decoded (``decode.rgb``), as files are named."""
HIDDEN_NAMES = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"})
"""Folders of copies that systems make by themselves, beside all that begin with a dot."""
TRAIN_NAMES = ("train", "training")
HELDOUT_NAMES = (
    "heldout",
    "held-out",
    "held_out",
    "val",
    "valid",
    "validation",
    "dev",
    "test",
    "holdout",
)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source."""

    id: str
    """Says which row is which image, for ever."""
    uri: str
    """Relative to the source's root."""
    offset: int = -1
    """Byte offset or row number inside ``uri``; -1 for a whole file."""
    length: int = -1
    label: str | None = None
    split: str | None = None
    """``train`` or ``heldout`` when the source says so."""


class ImageSource(ABC):
    """Images that can be listed and read."""

    kind = "own"
    """What it is, in a word."""
    slow_to_list = False
    """Listing reads everything: it is done when images are added, not when a run goes on."""
    window: int | None = None
    """Rows of a new cache are in random order of the files, and of the images of so many files;
    None: of all images."""

    left_out: Mapping[str, int] = MappingProxyType({})
    """What lies beside the images that ``records`` listed last, by kind."""

    @abstractmethod
    def records(self) -> list[ImageRecord]:
        """Every image once, in the same order each time; UsageError when there is none."""

    @abstractmethod
    def read(self, uri: str, offset: int, length: int) -> bytes:
        """The encoded bytes of an image, by what its record says. Called from several threads.

        Raises SourceError, which stops the run, where the bytes cannot be had. Bytes that are no
        image are a reject.
        """

    def expect(self, reads: Iterable[tuple[str, int]]) -> None:  # noqa: B027
        """These images (uri, offset) will be read, about in this order."""

    def stop(self) -> None:  # noqa: B027
        """End what is being read, within seconds; the source is of no use afterwards."""

    def close(self) -> None:  # noqa: B027
        """Give back what is held. A source may be closed twice."""


def split_of(value: object, where: Path) -> str | None:
    """``train``, ``heldout`` or None from a split column; UsageError lists the known names."""
    if value is None:
        return None
    text = str(value).lower()
    if text in HELDOUT_NAMES:
        return "heldout"
    if text in TRAIN_NAMES:
        return "train"
    raise UsageError(
        f"{where}: split {value!r} is not known; write train or one of {', '.join(HELDOUT_NAMES)}."
    )


def splits_of_names(names: Sequence[str]) -> list[str | None]:
    """Splits from the names of files or folders, where one of them is held out by its name.

    Otherwise None for all: a dataset that has only a training part says nothing about holding out.
    """
    if not any(name.lower() in HELDOUT_NAMES for name in names):
        return [None] * len(names)
    return ["heldout" if name.lower() in HELDOUT_NAMES else "train" for name in names]


def refuse_duplicates(ids: Sequence[str], where: str) -> None:
    """UsageError naming an id that is listed twice."""
    if len(set(ids)) != len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise UsageError(
            f"{where} lists {twice!r} {count} times; every image needs an id of its own."
        )


def is_hidden(name: str) -> bool:
    """Whether a part of a path names a hidden file, or a folder of copies that a system made."""
    return name in HIDDEN_NAMES or (name.startswith(".") and name not in (".", ".."))


def is_text(name: str) -> bool:
    """Whether a name can be an id: one with bytes that are no UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def left_out_text(left_out: Mapping[str, int], num_named: int = 6) -> str:
    """``left out: 12 hidden files, 2 named pipes``; empty where nothing was."""
    kinds = [f"{count:,} {kind}" for kind, count in Counter(left_out).most_common()]
    more = f", and {len(kinds) - num_named} kinds more" if kinds[num_named:] else ""
    return f"left out: {', '.join(kinds[:num_named])}{more}." if kinds else ""
