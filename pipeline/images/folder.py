"""Images as files: all below a folder, or those that a text file lists."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from phistill.errors import UsageError

from .local_files import is_file, read_file
from .source import (
    DEFAULTS,
    NO_LABELS,
    ImageSource,
    SourceOptions,
    image_records,
    left_out_text,
    refuse_duplicates,
)
from .splits import HELDOUT, TRAIN, split_of_name, splits_of_names
from .tree import Tree, walk


class FolderSource(ImageSource):
    """Every image file below a folder; the label is the folder it lies in, below ``train`` or
    ``val`` where there are such folders."""

    kind = "folder"

    def __init__(
        self, root: Path, options: SourceOptions = DEFAULTS, tree: Tree | None = None
    ) -> None:
        """``tree`` is what was found in the folder, where somebody has looked."""
        self._root, self._tree, self.options = root, tree, options

    def records(self) -> pa.Table:
        tree, self._tree = self._tree or walk(self._root), None
        left_out = tree.beside()
        del left_out["image files"]
        self.left_out = left_out
        if not len(tree.images):
            raise UsageError(
                f"{self._root} holds no image: no file ending in .jpg, .png, .webp or another "
                "suffix of images, no parquet table and no tar. Give the folder that holds them. "
                f"{left_out_text(left_out)}".rstrip()
            )
        folders = pc.replace_substring_regex(tree.images, r"[^/]+$", "").dictionary_encode()
        folders = folders.unify_dictionaries().combine_chunks()
        names = [name.rstrip("/") for name in folders.dictionary.to_pylist()]
        level = _split_level(names)
        splits: list[str | None] = [None] * len(names)
        if level is not None:
            splits = splits_of_names([_part(name, level) for name in names])
        labels = [_label(name, level, tree) for name in names]
        if self.options.label_column == NO_LABELS:
            labels = [None] * len(names)
        return image_records(
            tree.images,
            labels=pa.chunked_array([pa.array(labels, pa.string()).take(folders.indices)]),
            splits=pa.chunked_array([pa.array(splits, pa.string()).take(folders.indices)]),
        )

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._root / uri)


def _split_level(folders: list[str]) -> int | None:
    """Which part of the folders' paths is the split: the first that is not the same in all of them,
    where all are names of splits or one is held out and another for training. Images above it, as
    a picture beside ``train/`` and ``val/``, decide nothing."""
    for level in range(max((len(PurePosixPath(folder).parts) for folder in folders), default=0)):
        names = {_part(folder, level) for folder in folders}
        sides = {split_of_name(name) for name in names}
        if None not in sides or sides >= {TRAIN, HELDOUT}:
            return level
        if len(names - {""}) > 1:
            return None
    return None


def _part(folder: str, level: int) -> str:
    """One name of a folder's path; nothing where the path is shorter."""
    parts = PurePosixPath(folder).parts
    return parts[level] if level < len(parts) else ""


def _label(folder: str, level: int | None, tree: Tree) -> str | None:
    """The folder below the split's, if there is one; a shard of img2dataset is no class."""
    if folder in tree.shards:
        return None
    parts = PurePosixPath(folder).parts
    if level is not None and split_of_name(_part(folder, level)):
        parts = parts[level + 1 :]
    return "/".join(parts) or None


def listed_lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments; UsageError without any."""
    try:
        lines = [line.strip(" \t\r") for line in path.read_text("utf-8-sig").split("\n")]
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

    def __init__(self, path: Path, options: SourceOptions = DEFAULTS) -> None:
        self._path, self.options = path, options

    def records(self) -> pa.Table:
        paths = listed_lines(self._path)
        for path in paths:
            if not is_file(self._path.parent / path):
                raise UsageError(
                    f"{self._path} is read as a list of image paths, and {path[:80]!r} is no "
                    f"file below {self._path.parent}. Mend the line, or give a folder, parquet "
                    "or tar."
                )
        refuse_duplicates(paths, str(self._path))
        return image_records(sorted(paths))

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_file(self._path.parent / uri)
