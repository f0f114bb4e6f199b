"""Where images come from: a folder, a list of files, tables, tars, or a saved dataset.

A source lists its images once (a line each, in a fixed order) and reads the bytes of one when
asked. Names from a source are only ever identifiers; nothing is written under them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from phistill import cache as store
from phistill import plugins
from phistill.errors import PhistillError, SourceError, UsageError, did_you_mean

from .choice import choose
from .folder import ListSource, listed_lines
from .local_files import in_a_thread, is_too_long
from .source import DEFAULTS, KINDS, SUFFIXES, ImageSource, SourceOptions, refuse_duplicates
from .tables.arrow import ArrowSource
from .tables.parquet import ParquetSource
from .tars.fetched_tar import FetchedTarSource, check_urls, is_remote
from .tars.local_tar import TarSource
from .tree import COMPRESSED

MAX_NAMES = 1_000_000
"""That braces may stand for."""
NO_USE: Mapping[str, Any] = MappingProxyType({})
_GROUP = re.compile(r"\{([^{}]*)\}")


def open_source(
    path: str | Path, options: SourceOptions = DEFAULTS, used: Mapping[str, Any] = NO_USE
) -> ImageSource:
    """A source by what ``path`` is.

    A folder (of images, parquet tables, tars, or a saved Hugging Face dataset), a ``.parquet``,
    ``.arrow`` or ``.tar`` file, a text file of paths or of tars, or URLs of tars; braces stand for
    several tars (``shard-{0000..0127}.tar``). A source of your own is
    ``module:package.module:function[?key=value&...]``, or ``NAME:REST[?...]`` of a package that
    registers NAME. ``used`` is what a cache remembers: it holds where nothing is asked for.
    UsageError where ``options.kind`` is not what is there.
    """
    recorded = options.recorded(used)
    try:
        return _of_kind(path, recorded)
    except UsageError:
        if options.kind or not recorded.kind:
            raise
    return _of_kind(path, replace(recorded, kind=""))  # another form of the same images


def _of_kind(path: str | Path, options: SourceOptions) -> ImageSource:
    source = in_a_thread(lambda: _open(path, options))
    if options.kind and source.kind not in (options.kind, "own") and source.kind in KINDS:
        raise UsageError(
            f"{str(path)!r} is read as {KINDS[source.kind]}, and cannot be read as "
            f"{KINDS[options.kind]}. Leave --kind {options.kind} out."
        )
    return source


def _open(path: str | Path, options: SourceOptions) -> ImageSource:
    if isinstance(path, str) and is_remote(path):
        return FetchedTarSource.of_urls(check_urls(expand(path)), options)
    if isinstance(path, str) and is_plugin(path):
        return _open_plugin(path)
    if has_braces(str(path)) and not Path(path).exists():
        return _local_tars([Path(name) for name in expand(str(path))], options)
    path = Path(path)
    if is_too_long(path):
        raise UsageError(f"images {str(path)[:80]!r}... are too long to be a path.")
    if path.is_dir():
        if is_cache(path):
            raise UsageError(
                f"{path} is a cache, where images are wanted. Give the images it was made from; "
                "the shards of another cache are copied by `phistill merge`."
            )
        return choose(path, options)
    if not path.exists():
        near = did_you_mean(path.name, [file.name for file in path.absolute().parent.glob("*")])
        raise UsageError(
            f"images {str(path)!r} do not exist.{near} Give a folder, a parquet file, a tar, or a "
            "text file with one path per line."
        )
    if not path.is_file():
        raise UsageError(f"images {str(path)!r} are a pipe, a socket or a device, and no file.")
    return _open_file(path, options)


def _open_file(path: Path, options: SourceOptions) -> ImageSource:
    name = path.name.lower()
    if options.kind == "list":
        return ListSource(path, options)
    if name.endswith(".parquet"):
        return ParquetSource(path.parent, [path.name], options)
    if name.endswith(".arrow"):
        return ArrowSource(path.parent, [path.name], options)
    if name.endswith((".tar", *COMPRESSED)):
        return _local_tars([path], options)
    if path.suffix.lower() in SUFFIXES:
        raise UsageError(f"{path} is one image. Give the folder that holds the images.")
    lines = listed_lines(path)
    tars = (".tar", *COMPRESSED)
    if all(line.partition("?")[0].lower().endswith(tars) for line in lines):
        names = [name for line in lines for name in expand(line)]
        if any(is_remote(name) for name in names):
            return FetchedTarSource.of_urls(check_urls(names), options)
        return _local_tars([path.parent / name for name in names], options)
    return ListSource(path, options)


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache. Of one that may not be entered, listing it says so."""
    try:
        return store.exists(folder)
    except PermissionError:
        return False


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


def _local_tars(tars: list[Path], options: SourceOptions) -> ImageSource:
    for tar in tars:
        if not tar.is_file():
            raise UsageError(f"images {str(tar)!r} do not exist; {len(tars)} tars were asked for.")
        if not tar.name.lower().endswith((".tar", *COMPRESSED)):
            raise UsageError(f"{tar} is no tar; braces stand for several tars.")
    refuse_duplicates([str(tar) for tar in tars], "the list of tars")
    root = Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
    names = [tar.absolute().relative_to(root).as_posix() for tar in tars]
    if any(name.lower().endswith(COMPRESSED) for name in names):
        return FetchedTarSource.of_compressed(root, names, options)
    return TarSource(root, names, options)


@contextmanager
def opened(
    images: str | Path | ImageSource,
    options: SourceOptions = DEFAULTS,
    used: Mapping[str, Any] = NO_USE,
) -> Iterator[ImageSource]:
    """The source of what a caller gave; one that was opened here is closed in the end."""
    if not isinstance(images, str | Path):
        yield images
        return
    source = open_source(images, options, used)
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
