"""Images as files: all below a folder, or those that a text file lists."""

from __future__ import annotations

import os
from pathlib import Path

from phistill.errors import UsageError

from .local_files import read_file
from .source import (
    HELDOUT_NAMES,
    SUFFIXES,
    TRAIN_NAMES,
    ImageRecord,
    ImageSource,
    refuse_duplicates,
    splits_of_names,
)


class FolderSource(ImageSource):
    """Every image file below a folder; the label is the folder it lies in, below ``train`` or
    ``val`` where these are the folders at the top."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root

    def records(self) -> list[ImageRecord]:
        paths = [
            Path(folder, name).relative_to(self._root)
            for folder, _, names in os.walk(self._root)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not _is_broken_link(folder, name)
        ]
        if not paths:
            raise UsageError(
                f"{self._root} holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Give another folder, or a parquet file."
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

    def _splits(self, paths: list[Path]) -> list[str | None]:
        """From ``train/`` and ``val/`` at the top, where all images lie in such folders."""
        tops = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
        if not all(top.lower() in (*TRAIN_NAMES, *HELDOUT_NAMES) for top in tops):
            return [None] * len(paths)
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
