"""What a source lists, and reading its files: retried, and never mistaken for a bad image."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from phistill.errors import SourceError, UsageError

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "jfif", "jp2", "jpeg", "jpg"),
        *("pgm", "png", "ppm", "tif", "tiff", "webp"),
    )
)
TRAIN_NAMES = ("train", "training")
HELDOUT_NAMES = ("heldout", "held-out", "held_out", "val", "valid", "validation", "test", "holdout")
NUM_TRIES = 3
"""A read error may be a hiccup of a network file system; it is tried this often."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source."""

    id: str
    uri: str
    """Relative to the source's root."""
    offset: int = -1
    """Byte offset or row number inside ``uri``; -1 for a whole file."""
    length: int = -1
    label: str | None = None
    split: str | None = None
    """``train`` or ``heldout`` when the source says so."""


def retried(action: Callable[[], T], path: Path) -> T:
    """The action's result; SourceError when the file is gone or cannot be read after all tries."""
    for attempt in range(NUM_TRIES):
        try:
            return action()
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is in the index and is gone. Put it back, or name the source that has it."
            ) from error
        except OSError as error:  # pyarrow raises a plain one for damaged tables too
            failure = error
            time.sleep(0.1 * 4**attempt)
    raise SourceError(
        f"{path} cannot be read ({failure.strerror or failure}), tried {NUM_TRIES} times. "
        "Nothing was recorded for it; mend the disk and run the same command again."
    )


def read_file(path: Path) -> bytes:
    return retried(path.read_bytes, path)


def read_part(path: Path, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``; SourceError when the file ends before."""

    def read() -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return read_bytes_at(descriptor, offset, length)
        finally:
            os.close(descriptor)

    data = retried(read, path)
    if len(data) < length:
        raise SourceError(
            f"{path} ends {length - len(data):,} bytes before the image at {offset:,} does. "
            "It changed after it was indexed; put the old one back, or make a new cache."
        )
    return data


def read_bytes_at(descriptor: int, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset`` of an open file, fewer where it ends."""
    found = bytearray()
    while len(found) < length:
        part = os.pread(descriptor, length - len(found), offset + len(found))
        if not part:
            break
        found += part
    return bytes(found)


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


def refuse_duplicates(ids: Sequence[str], what: str) -> None:
    """UsageError naming an id that is listed twice."""
    if len(set(ids)) != len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise UsageError(
            f"{what} lists {twice!r} {count} times; every image needs an id of its own."
        )
