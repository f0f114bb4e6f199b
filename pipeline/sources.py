"""Where images come from: a folder, a list of files, tables, tars, or a saved dataset.

A source lists its images once (an entry each, in a fixed order) and reads the bytes of one when
asked. Names from a source are only ever identifiers; nothing is written under them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from ..cache.errors import UsageError
from .arrow_source import ArrowSource, is_saved_dataset
from .entries import SUFFIXES, Entry, read_file, refuse_duplicates
from .parquet_source import ParquetSource
from .tar_source import TarSource

__all__ = [
    "ArrowSource",
    "Entry",
    "FolderSource",
    "ListSource",
    "ParquetSource",
    "Source",
    "TarSource",
    "open_source",
]

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Source(Protocol):
    """Images that can be listed and read. ``read`` is called from several threads."""

    kind: str

    def entries(self) -> list[Entry]: ...

    def read(self, uri: str, offset: int, length: int) -> bytes: ...


def open_source(path: str | Path) -> Source:
    """A source by what ``path`` is.

    A folder (of images, parquet tables, tars, or a saved Hugging Face dataset), a ``.parquet`` or
    ``.tar`` file, or a text file of paths.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UsageError(
            f"images {str(path)!r} do not exist. Give a folder, a parquet file, a tar, or a text "
            "file with one path per line."
        )
    if path.suffix == ".parquet":
        return ParquetSource(path.parent, [path])
    if path.suffix == ".tar":
        return TarSource(path.parent, [path])
    if path.name.endswith(COMPRESSED):
        raise UsageError(
            f"{path} is compressed, and its members cannot be read in place. Decompress it: images "
            "hardly shrink."
        )
    if path.suffix.lower() in SUFFIXES:
        raise UsageError(f"{path} is one image. Give the folder that holds the images.")
    return ListSource(path)


def _open_folder(path: Path) -> Source:
    if is_saved_dataset(path):
        return ArrowSource(path)
    # A snapshot of a dataset repository keeps its tables one folder down.
    if tables := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return ParquetSource(path, tables)
    if tars := sorted(path.glob("*.tar")):
        return TarSource(path, tars)
    return FolderSource(path)


class FolderSource:
    """Every image file below a folder; the label is the folder it lies in."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> list[Entry]:
        found = [
            Path(folder, name).relative_to(self._root)
            for folder, _, names in os.walk(self._root)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not _is_broken_link(folder, name)
        ]
        if not found:
            raise UsageError(
                f"{self._root} holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Give another folder, or a parquet file."
            )
        labelled = any(path.parent.parts for path in found)
        return [
            Entry(
                id=path.as_posix(),
                uri=path.as_posix(),
                label=path.parent.as_posix() if labelled else None,
            )
            for path in sorted(found)
        ]

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._root / uri)


def _is_broken_link(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    return os.path.islink(path) and not os.path.exists(path)


class ListSource:
    """A text file with one path per line, relative to the file's own folder."""

    kind = "list"

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        try:
            lines = [line.strip() for line in self._path.read_text("utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self._path} is neither an image folder, a parquet file, a tar nor a text file "
                "of paths."
            ) from error
        paths = [line for line in lines if line and not line.startswith("#")]
        if not paths:
            raise UsageError(f"{self._path} lists no image.")
        for path in paths:
            if not (self._path.parent / path).is_file():
                raise UsageError(
                    f"{self._path} is read as a list of image paths, and {path!r} is no file below "
                    f"{self._path.parent}. Mend the line, or give a folder, parquet or tar."
                )
        refuse_duplicates(paths, str(self._path))
        return [Entry(id=path, uri=path) for path in sorted(paths)]

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._path.parent / uri)
