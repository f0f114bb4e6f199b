"""Where images come from: a folder, a list of files, tables, tars, or a saved dataset.

A source lists its images once (an entry each, in a fixed order) and reads the bytes of one when
asked. Names from a source are only ever identifiers; nothing is written under them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from phistill.errors import UsageError

from .arrow import ArrowSource, is_saved_dataset
from .braces import expand, has_braces
from .parquet import ParquetSource
from .record import (
    HELDOUT_NAMES,
    SUFFIXES,
    TRAIN_NAMES,
    Entry,
    read_file,
    refuse_duplicates,
    splits_of_names,
)
from .remote_tar import WINDOW_TARS, RemoteTarSource, check_urls, is_remote
from .tar import TarSource

__all__ = [
    "ArrowSource",
    "Entry",
    "FolderSource",
    "ListSource",
    "ParquetSource",
    "RemoteTarSource",
    "Source",
    "TarSource",
    "open_source",
    "opened",
]

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Source(Protocol):
    """Images that can be listed and read. ``read`` is called from several threads.

    A source from afar may have more, each looked for by name: ``slow_to_list``, ``window_tars`` (an
    order for a new cache), ``expect(reads)`` before many images are read, and ``close()``.
    """

    kind: str

    def entries(self) -> list[Entry]: ...

    def read(self, uri: str, offset: int, length: int) -> bytes: ...


def open_source(path: str | Path, window_tars: int = WINDOW_TARS) -> Source:
    """A source by what ``path`` is.

    A folder (of images, parquet tables, tars, or a saved Hugging Face dataset), a ``.parquet`` or
    ``.tar`` file, a text file of paths or of tars, or URLs of tars; braces stand for several tars
    (``shard-{0000..0127}.tar``). Of tars from afar, ``window_tars`` are mixed.
    """
    if isinstance(path, str) and is_remote(path):
        return RemoteTarSource(check_urls(expand(path)), window_tars)
    if has_braces(str(path)) and not Path(path).exists():
        return _local_tars([Path(name) for name in expand(str(path))])
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
    lines = listed_lines(path)
    if all(line.partition("?")[0].endswith(".tar") for line in lines):
        names = [name for line in lines for name in expand(line)]
        if any(is_remote(name) for name in names):
            return RemoteTarSource(check_urls(names), window_tars)
        return _local_tars([path.parent / name for name in names])
    return ListSource(path)


def _local_tars(tars: list[Path]) -> TarSource:
    for tar in tars:
        if not tar.is_file():
            raise UsageError(f"images {str(tar)!r} do not exist; {len(tars)} tars were asked for.")
        if tar.suffix != ".tar":
            raise UsageError(f"{tar} is no tar; braces stand for several tars.")
    refuse_duplicates([str(tar) for tar in tars], "the list of tars")
    root = Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
    return TarSource(root, [tar.absolute() for tar in tars])


def _open_folder(path: Path) -> Source:
    if is_saved_dataset(path):
        return ArrowSource(path)
    # A snapshot of a dataset repository keeps its tables one folder down.
    if tables := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return ParquetSource(path, tables)
    if tars := sorted(path.glob("*.tar")):
        return TarSource(path, tars)
    return FolderSource(path)


@contextmanager
def opened(images: str | Path | Source, window_tars: int = WINDOW_TARS) -> Iterator[Source]:
    """The source of what a caller gave; one that was opened here is closed in the end."""
    if not isinstance(images, str | Path):
        yield images
        return
    source = open_source(images, window_tars)
    try:
        yield source
    finally:
        getattr(source, "close", lambda: None)()  # only a source from afar keeps files


class FolderSource:
    """Every image file below a folder; the label is the folder it lies in, below ``train`` or
    ``val`` where these are the folders at the top."""

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
        found.sort()
        splits = self._splits(found)
        folders = [
            path.parent if split is None else path.parent.relative_to(path.parts[0])
            for path, split in zip(found, splits, strict=True)
        ]
        labelled = any(folder.parts for folder in folders)
        return [
            Entry(
                id=path.as_posix(),
                uri=path.as_posix(),
                label=folder.as_posix() if labelled else None,
                split=split,
            )
            for path, folder, split in zip(found, folders, splits, strict=True)
        ]

    def _splits(self, found: list[Path]) -> list[str | None]:
        """From ``train/`` and ``val/`` at the top, where all images lie in such folders."""
        tops = [path.parts[0] if len(path.parts) > 1 else "" for path in found]
        if not all(top.lower() in (*TRAIN_NAMES, *HELDOUT_NAMES) for top in tops):
            return [None] * len(found)
        return splits_of_names(tops)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._root / uri)


def _is_broken_link(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    return os.path.islink(path) and not os.path.exists(path)


def listed_lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments; UsageError without any."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is neither an image folder, a parquet file, a tar nor a text file of paths."
        ) from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(f"{path} lists no image.")
    return found


class ListSource:
    """A text file with one path per line, relative to the file's own folder."""

    kind = "list"

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        paths = listed_lines(self._path)
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
