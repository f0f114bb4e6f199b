"""Images as files: all below a folder, or those that a text file lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from phistill.errors import UsageError

from .local_files import read_file
from .source import (
    HELDOUT_NAMES,
    SUFFIXES,
    TRAIN_NAMES,
    ImageRecord,
    ImageSource,
    is_hidden,
    is_text,
    left_out_text,
    refuse_duplicates,
    splits_of_names,
)

FOLDER, IMAGE = "folder", "image"


class FolderSource(ImageSource):
    """Every image file below a folder; the label is the folder it lies in, below ``train`` or
    ``val`` where these are the folders at the top."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root

    def records(self) -> list[ImageRecord]:
        self.left_out = left_out = Counter[str]()
        paths = list(_walk(self._root, PurePath(), (), left_out))
        if not paths:
            raise UsageError(
                f"{self._root} holds no image ({', '.join(sorted(SUFFIXES))}). "
                f"Give another folder, or a parquet file. {left_out_text(self.left_out)}".rstrip()
            )
        paths.sort()
        splits = self._splits(paths)
        folders = [
            path.parent if split is None else path.parent.relative_to(path.parts[0])
            for path, split in zip(paths, splits, strict=True)
        ]
        labelled = any(folder.parts for folder in folders)
        return [
            ImageRecord(
                id=path.as_posix(),
                uri=path.as_posix(),
                label=folder.as_posix() if labelled else None,
                split=split,
            )
            for path, folder, split in zip(paths, folders, splits, strict=True)
        ]

    def _splits(self, paths: list[PurePath]) -> list[str | None]:
        """From ``train/`` and ``val/`` at the top, where all images lie in such folders."""
        tops = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
        if not all(top.lower() in (*TRAIN_NAMES, *HELDOUT_NAMES) for top in tops):
            return [None] * len(paths)
        return splits_of_names(tops)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._root / uri)


def _walk(
    folder: Path,
    below: PurePath,
    above: tuple[tuple[int, int], ...],
    left_out: Counter[str],
) -> Iterator[PurePath]:
    """Images below the root, links followed; ``above`` are the folders that led here, by device
    and inode: a link back to one of them is a loop."""
    facts = folder.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        left_out["links that lead back"] += 1
        return
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        kind = _kind(entry)
        if kind == FOLDER:
            yield from _walk(folder / entry.name, below / entry.name, (*above, here), left_out)
        elif kind == IMAGE:
            yield below / entry.name
        else:
            left_out[kind] += 1


def _kind(entry: os.DirEntry[str]) -> str:
    """FOLDER, IMAGE, or what is left out."""
    if is_hidden(entry.name):
        return "hidden files and folders"
    if not is_text(entry.name):
        return "names that are not UTF-8"
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            broken = entry.is_symlink() and not os.path.exists(entry.path)
            return "broken links" if broken else "pipes, sockets and devices"
    except OSError:  # a link to itself
        return "broken links"
    suffix = PurePath(entry.name).suffix.lower()
    if suffix in SUFFIXES:
        return IMAGE
    return f"{suffix} files" if suffix else "files without a suffix"


def listed_lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments; UsageError without any."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is neither an image folder, a parquet file, a tar nor a text file of paths."
        ) from error
    listed = [line for line in lines if line and not line.startswith("#")]
    if not listed:
        raise UsageError(f"{path} lists no image.")
    return listed


class ListSource(ImageSource):
    """A text file with one path per line, relative to the file's own folder."""

    kind = "list"

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self) -> list[ImageRecord]:
        paths = listed_lines(self._path)
        for path in paths:
            if not (self._path.parent / path).is_file():
                raise UsageError(
                    f"{self._path} is read as a list of image paths, and {path!r} is no file below "
                    f"{self._path.parent}. Mend the line, or give a folder, parquet or tar."
                )
        refuse_duplicates(paths, str(self._path))
        return [ImageRecord(id=path, uri=path) for path in sorted(paths)]

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._path.parent / uri)
