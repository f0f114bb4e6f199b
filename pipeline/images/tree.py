"""What lies below a folder: one walk with ``os.scandir``, paths as a column and no object per file.

Links are followed; a link back to a folder above is left out, and a folder is listed through links
only so often, because folders that link to one another have no end.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from phistill.errors import SourceError

from .source import SUFFIXES, is_hidden, is_text, suffix_kind

MAX_VISITS = 100
"""Of one folder, by the links that lead there."""
NUM_TRIES = 3
STATS = "_stats.json"
"""What img2dataset puts beside each folder, tar or table of a shard."""
MANY = 2**16
"""Paths that are held as Python's text before they become a column."""

TABLE, ARROW, TAR, PACKED = "tables", "arrow", "tars", "packed"
CONTAINERS = {".parquet": TABLE, ".arrow": ARROW, ".tar": TAR, ".tgz": PACKED, ".tbz2": PACKED}
CONTAINERS |= dict.fromkeys((".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"), PACKED)
COMPRESSED = tuple(suffix for suffix, kind in CONTAINERS.items() if kind == PACKED)
"""Suffixes of tars that have no offsets."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The files below ``root``, by what they may hold; paths are relative and in order."""

    root: Path
    images: pa.ChunkedArray
    """Paths (n,) of image files."""
    tables: list[str] = field(default_factory=list)
    arrow: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    """Compressed tars."""
    left_out: Counter[str]
    """Everything else, by kind."""
    shards: frozenset[str]
    """Folders that img2dataset made to hold so many files each; they are no classes."""

    def beside(self, *taken: str) -> Counter[str]:
        """What is left out, by kind, when only the files ``taken`` are read."""
        left_out = Counter(self.left_out)
        for files in (self.tables, self.arrow, self.tars, self.packed):
            left_out.update(suffix_kind(name) for name in files)
        for name in taken:
            left_out[suffix_kind(name)] -= 1
        left_out["image files"] = len(self.images)
        return +left_out


class _Paths:
    """Paths that become a column part by part."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._some: list[str] = []

    def append(self, path: str) -> None:
        self._some.append(path)
        if len(self._some) == MANY:
            self._flush()

    def _flush(self) -> None:
        self._parts.append(pa.array(self._some, pa.string()))
        self._some = []

    def in_order(self) -> pa.ChunkedArray:
        """By the bytes of the whole path."""
        self._flush()
        column = pa.chunked_array(self._parts)
        return column.take(pc.sort_indices(column))


def walk(root: Path) -> Tree:
    """Everything below ``root``; SourceError when a folder cannot be listed."""
    images, left_out, shards = _Paths(), Counter[str](), set[str]()
    found: dict[str, list[str]] = {TABLE: [], ARROW: [], TAR: [], PACKED: []}
    for path, name in _files(root, left_out):
        suffix = _suffix(name)
        if suffix in SUFFIXES:
            images.append(path)
        elif kind := CONTAINERS.get(_packed_suffix(name) or suffix):
            found[kind].append(path)
        else:
            left_out[suffix_kind(name)] += 1
            if name.endswith(STATS):
                shards.add(path.removesuffix(STATS))
    return Tree(
        root=root,
        images=images.in_order(),
        left_out=left_out,
        shards=frozenset(shards),
        **{kind: sorted(paths) for kind, paths in found.items()},
    )


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def _packed_suffix(name: str) -> str:
    lower = name.lower()
    return next((suffix for suffix in COMPRESSED if lower.endswith(suffix)), "")


def _files(root: Path, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """(path below the root, name) of each regular file; what is none is counted."""
    visits = Counter[tuple[int, int]]()
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...], bool]] = [(str(root), "", (), False)]
    while waiting:
        folder, below, above, linked = waiting.pop()
        here = _identity(folder)
        visits[here] += linked
        if here in above:
            left_out["links that lead back"] += 1
            continue
        if linked and visits[here] > MAX_VISITS:
            left_out["links to a folder that many lead to"] += 1
            continue
        folders = []
        for entry in _entries(folder):
            name = entry.name
            if is_hidden(name):
                left_out["hidden files and folders"] += 1
            elif not is_text(name):
                left_out["names that are not UTF-8"] += 1
            elif (other := _other_kind(entry)) is None:
                yield below + name, name
            elif other:
                left_out[other] += 1
            else:
                way = linked or entry.is_symlink()
                folders.append((f"{folder}/{name}", f"{below}{name}/", (*above, here), way))
        waiting += sorted(folders, reverse=True)


def _other_kind(entry: os.DirEntry[str]) -> str | None:
    """None for a file, nothing for a folder, else what is left out."""
    try:
        if entry.is_file():
            return None
        if entry.is_dir():
            return ""
        if not entry.is_symlink():
            return "pipes, sockets and devices"
        mode = os.stat(entry.path).st_mode
        return "broken links" if stat.S_ISREG(mode) else "pipes, sockets and devices"
    except FileNotFoundError:
        return "broken links"
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return "broken links"
        return f"files that cannot be looked at ({error.strerror})"


def _identity(folder: str) -> tuple[int, int]:
    for attempt in range(NUM_TRIES):
        try:
            facts = os.stat(folder)
            return facts.st_dev, facts.st_ino
        except OSError as error:
            failure = error
            time.sleep(0.1 * 4**attempt)
    raise _not_listed(folder, failure) from failure


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What lies in one folder, as the system hands it out."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise _not_listed(folder, error) from error


def _not_listed(folder: str, error: OSError) -> SourceError:
    return SourceError(
        f"the folder {folder!r} cannot be listed ({error.strerror}), and images may lie in it. "
        "Mend that, or move it away; nothing was recorded."
    )
