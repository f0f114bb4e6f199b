"""Which files of a folder are its images, where they may lie in tables, tars or as files.

By what holds most of them: an unrelated table or a packed copy beside images changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from phistill.errors import PhistillError, SourceError, UsageError

from .folder import FolderSource
from .source import KINDS, SUFFIXES, ImageSource, SourceOptions
from .tables.arrow import ArrowSource, dataset_files, is_saved_dataset
from .tables.parquet import ParquetSource, is_readable, num_images
from .tars.fetched_tar import FetchedTarSource
from .tars.local_tar import TarSource
from .tars.members import members
from .tree import Tree, walk


def choose(root: Path, options: SourceOptions) -> ImageSource:
    """What ``options.kind`` asks for; else what holds most images, image files where it is even.

    Compressed tars, and tables that name files, count where nothing else holds an image.
    """
    if options.kind == "folder":
        return FolderSource(root, options)
    tree = walk(root)
    if options.kind:
        return _of_kind(options.kind, tree, options)
    if is_saved_dataset(root):
        return _of_kind("arrow", tree, options)
    counts = {
        "folder": len(tree.images),
        "arrow": 0 if (arrow := _arrow(tree, options)) is None else arrow.num_images,
        "parquet": sum(num_images(root / table, options) for table in tree.tables),
    }
    counts["tar"] = _num_in_tars(tree, options, enough=max(counts.values()))
    if any(counts.values()):
        return _of_kind(max(counts, key=lambda kind: counts[kind]), tree, options)
    for kind, files in (
        ("arrow", tree.arrow),
        ("tar", [*tree.tars, *tree.packed]),
        ("parquet", tree.tables),
    ):
        if files:
            return _of_kind(kind, tree, options)
    return FolderSource(root, options, tree)


def _of_kind(kind: str, tree: Tree, options: SourceOptions) -> ImageSource:
    """UsageError where the folder holds nothing of the kind."""
    if kind == "folder":
        return FolderSource(tree.root, options, tree)
    open_kind: dict[str, Callable[[Tree, SourceOptions], ImageSource | None]] = {
        "arrow": _arrow,
        "parquet": _parquet,
        "tar": _tar,
    }
    if kind not in open_kind:
        raise UsageError(
            f"{tree.root} is a folder; --kind {kind} reads {KINDS[kind]}. Give that file."
        )
    source = open_kind[kind](tree, options)
    if source is None:
        raise UsageError(f"{tree.root} holds no {KINDS[kind]}, which --kind {kind} asks for.")
    return source


def _arrow(tree: Tree, options: SourceOptions) -> ArrowSource | None:
    files = dataset_files(tree.root, tree.arrow)
    if not files:
        return None
    return ArrowSource(tree.root, files, options, tree.beside(*files))


def _parquet(tree: Tree, options: SourceOptions) -> ParquetSource | None:
    """Tables with images, or else those with paths; SourceError where one of them is damaged, since
    it may hold images too."""
    if not tree.tables:
        return None
    tables = [
        table for table in tree.tables if num_images(tree.root / table, options)
    ] or tree.tables
    for table in tree.tables:
        if not is_readable(tree.root / table):
            raise SourceError(
                f"{tree.root / table} cannot be read as parquet, and may hold images. Get it "
                "again, or move it away."
            )
    return ParquetSource(tree.root, tables, options, tree.beside(*tables))


def _tar(tree: Tree, options: SourceOptions) -> ImageSource | None:
    if tree.tars:
        return TarSource(tree.root, tree.tars, options, tree.beside(*tree.tars))
    if tree.packed:
        beside = tree.beside(*tree.packed)
        return FetchedTarSource.of_compressed(tree.root, tree.packed, options, beside)
    return None


def _num_in_tars(tree: Tree, options: SourceOptions, enough: int) -> int:
    """Images in the tars, counted until there are more than ``enough``; a damaged one counts as far
    as it goes."""
    count = 0
    for tar in tree.tars:
        with suppress(PhistillError, OSError):
            for member in members(tree.root / tar, options.allow_cut_tars):
                count += member.suffix in SUFFIXES and not member.unread
                if count > enough:
                    return count
    return count
