"""Where images come from: a folder, a list of files, tables, tars, or a saved dataset.

A source lists its images once (a record each, in a fixed order) and reads the bytes of one when
asked. Names from a source are only ever identifiers; nothing is written under them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phistill import plugins
from phistill.errors import PhistillError, SourceError, UsageError

from .arrow import ArrowSource, is_saved_dataset
from .folder import FolderSource, ListSource, listed_lines
from .parquet import ParquetSource, holds_images
from .remote_tar import WINDOW_TARS, RemoteTarSource, check_urls, is_remote
from .source import SUFFIXES, ImageSource, is_hidden, refuse_duplicates
from .tar import WHOLE_TARS, TarRules, TarSource

MAX_NAMES = 1_000_000
"""That braces may stand for."""
_GROUP = re.compile(r"\{([^{}]*)\}")
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_source(
    path: str | Path, window_tars: int = WINDOW_TARS, tars: TarRules = WHOLE_TARS
) -> ImageSource:
    """A source by what ``path`` is.

    A folder (of images, parquet tables, tars, or a saved Hugging Face dataset), a ``.parquet`` or
    ``.tar`` file, a text file of paths or of tars, or URLs of tars; braces stand for several tars
    (``shard-{0000..0127}.tar``). Of tars from afar, ``window_tars`` are mixed. A source of your own
    is ``module:package.module:function[?key=value&...]``, or ``NAME:REST[?...]`` of a package that
    registers NAME.
    """
    if isinstance(path, str) and is_remote(path):
        return RemoteTarSource(check_urls(expand(path)), window_tars, rules=tars)
    if isinstance(path, str) and is_plugin(path):
        return _open_plugin(path)
    if has_braces(str(path)) and not Path(path).exists():
        return _local_tars([Path(name) for name in expand(str(path))], tars)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, tars)
    if not path.is_file():
        raise UsageError(
            f"images {str(path)!r} do not exist. Give a folder, a parquet file, a tar, or a text "
            "file with one path per line."
        )
    if path.suffix == ".parquet":
        return ParquetSource(path.parent, [path])
    if path.suffix == ".tar":
        return TarSource(path.parent, [path], tars)
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
            return RemoteTarSource(check_urls(names), window_tars, rules=tars)
        return _local_tars([path.parent / name for name in names], tars)
    return ListSource(path)


def is_plugin(text: str) -> bool:
    """Whether a text names a source of a user's own."""
    name, colon, _ = text.partition(":")
    if not colon or Path(text).exists():
        return False
    return name == plugins.MODULE or name in plugins.registered(plugins.IMAGE_SOURCES)


def _open_plugin(text: str) -> ImageSource:
    """What its function ``open(rest, options)`` returns; SourceError when it fails."""
    body, options = plugins.split_options(text)
    name, _, rest = body.partition(":")
    if name == plugins.MODULE:
        function, rest = plugins.load(rest, plugins.MODULE), ""
    else:
        function = plugins.registered(plugins.IMAGE_SOURCES)[name].load()
    try:
        source = function(rest, options)
    except PhistillError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise SourceError(
            f"images {text!r} cannot be opened: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(source, ImageSource):
        raise UsageError(
            f"images {text!r}: the function returned a {type(source).__name__}, not an "
            "ImageSource. Derive it from phistill.pipeline.ImageSource."
        )
    return source


def _local_tars(tars: list[Path], rules: TarRules) -> TarSource:
    for tar in tars:
        if not tar.is_file():
            raise UsageError(f"images {str(tar)!r} do not exist; {len(tars)} tars were asked for.")
        if tar.suffix != ".tar":
            raise UsageError(f"{tar} is no tar; braces stand for several tars.")
    refuse_duplicates([str(tar) for tar in tars], "the list of tars")
    root = Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
    return TarSource(root, [tar.absolute() for tar in tars], rules)


def _open_folder(path: Path, rules: TarRules) -> ImageSource:
    """By what holds images: tables with encoded images, else tars, else image files, else tables of
    paths. Tables and tars may lie below, as a snapshot of a dataset repository has them."""
    if is_saved_dataset(path):
        return ArrowSource(path)
    tables = _below(path, ".parquet")
    if with_images := [table for table in tables if holds_images(table)]:
        return ParquetSource(path, with_images)
    if tars := _below(path, ".tar"):
        return TarSource(path, tars, rules)
    if packed := [name for suffix in COMPRESSED for name in _below(path, suffix)]:
        raise UsageError(
            f"{packed[0]} is compressed, and its members cannot be read in place. Decompress it: "
            "images hardly shrink."
        )
    if tables and next(_image_files(path), None) is None:
        return ParquetSource(path, tables)
    return FolderSource(path)


def _below(path: Path, suffix: str) -> list[Path]:
    """Files with this suffix in a folder, or else in the folders below; none that is hidden."""
    for pattern in (f"*{suffix}", f"**/*{suffix}"):
        files = [
            file
            for file in path.glob(pattern)
            if file.is_file() and not any(map(is_hidden, file.relative_to(path).parts))
        ]
        if files:
            return sorted(files)
    return []


def _image_files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


@contextmanager
def opened(
    images: str | Path | ImageSource, window_tars: int = WINDOW_TARS
) -> Iterator[ImageSource]:
    """The source of what a caller gave; one that was opened here is closed in the end."""
    if not isinstance(images, str | Path):
        yield images
        return
    source = open_source(images, window_tars)
    try:
        yield source
    finally:
        source.close()


def has_braces(text: str) -> bool:
    """Whether the text stands for several names."""
    return any(".." in group or "," in group for group in _GROUP.findall(text))


def expand(text: str) -> list[str]:
    """Every name, in order; UsageError for a range that is none, or a million names."""
    names = [text]
    while any(_GROUP.search(one) for one in names):
        names = [one for name in names for one in _first(name)]
        if len(names) > MAX_NAMES:
            raise UsageError(f"{text!r} stands for more than {MAX_NAMES:,} names.")
    return names


def _first(text: str) -> Iterator[str]:
    group = _GROUP.search(text)
    if group is None:
        yield text
        return
    before, after = text[: group.start()], text[group.end() :]
    for part in _parts(group[1]):
        yield before + part + after


def _parts(group: str) -> list[str]:
    bounds = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", group)
    if bounds is None:
        if ".." in group or not group:
            raise UsageError(f"{{{group}}} is neither {{first..last}} with numbers nor {{a,b,c}}.")
        return group.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if last < first or last - first >= MAX_NAMES:
        raise UsageError(f"{{{group}}} is no range: the first number must be the smaller one.")
    width = len(bounds[1]) if bounds[1].startswith("0") or len(bounds[1]) == len(bounds[2]) else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]
