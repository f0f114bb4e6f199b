"""A cache from its place: opened, made, or said what lies there instead."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
from msgspec.structs import replace

from phistill.errors import UsageError, counted, did_you_mean

from .format import names
from .format.arrays import array_document, group_document
from .format.info import CacheInfo
from .segments import publish_index
from .storage.files import Files
from .storage.local_files import LocalFiles
from .storage.open_files import open_files
from .store import Cache

log = logging.getLogger(__name__)


def open(location: str | Path | Files) -> Cache:
    """Open an existing cache; UsageError when there is none at ``location``."""
    files = open_files(location)
    try:
        cache = Cache(files)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_cache(files) from None
    rows, shards = counted(cache.info.num_real_rows, "row"), counted(cache.info.num_shards, "shard")
    log.debug("%s: %s in %s, teachers %s", files.location, rows, shards, ", ".join(cache.teachers))
    return cache


def exists(location: str | Path | Files) -> bool:
    """Whether there is a cache, finished or not."""
    return open_files(location).size(names.ROOT) is not None


def create(location: str | Path | Files, info: CacheInfo, index: pa.Table) -> Cache:
    """Create a cache whose first segment is ``index`` (index.INDEX_COLUMNS, one line per row).

    The root is published last: a killed ``create`` leaves a folder that is not a cache yet. Commit
    records that lie there are of other rows and must not be believed: UsageError.
    """
    files = open_files(location)
    if files.exists(names.ROOT):
        raise UsageError(f"{files.location} already exists. Choose another, or extract into it.")
    if not index.num_rows:
        raise UsageError("a cache needs at least one image.")
    if names.COMMITTED & set(files.names_in("")):
        raise UsageError(
            f"{files.location} holds the shards of a cache but no {names.ROOT}: it was lost, or a "
            f"copy stopped. Put {names.ROOT} back, repeat the copy, or choose another place."
        )
    segment = publish_index(files, index, number=0, start=0, shard_rows=info.shard_rows)
    info = replace(info, segments=(segment,))
    files.publish(names.metadata(names.TEACHERS), [group_document()])
    if info.pixel_size:
        shape = (info.pixel_size, info.pixel_size, 3)
        document = array_document(info, names.PIXELS, shape)
        files.publish(names.metadata(names.PIXELS), [document])
    files.create(names.ROOT, group_document(info))
    return Cache(files)


def _no_cache(files: Files) -> UsageError:
    """The refusal of ``files`` that have no root, by what else lies there.

    The place is listed, because a store that is asked for one object of a bucket that does not
    exist only says that there is no such object. StoreError where it cannot be listed.
    """
    refusal = f"{files.location} is not a cache: "
    if isinstance(files, LocalFiles) and files.root.is_file():
        return UsageError(f"{refusal}it is a file. {_images_elsewhere(files)}")
    inside = set(files.names_in("")) - names.WRITERS
    if not inside:
        return UsageError(
            f"{refusal}nothing is there.{_neighbours(files)} "
            f"Make one with `phistill extract IMAGES --cache {files.location} --teacher ...`."
        )
    if inside & {*names.COMMITTED, "index"}:
        return UsageError(
            f"{refusal}it has parts of one, but no {names.ROOT}. If it was being made or copied, "
            f"run the same command again; otherwise put {names.ROOT} back."
        )
    if inside >= {"config.json", "checkpoints"}:
        return UsageError(f"{refusal}it is a run. Give the cache that it was trained on.")
    return UsageError(f"{refusal}it has no {names.ROOT}. {_images_elsewhere(files)}")


def _neighbours(files: Files) -> str:
    """What beside the place is spelt nearly so."""
    if not isinstance(files, LocalFiles):
        return ""
    try:
        beside = [path.name for path in files.root.absolute().parent.iterdir()]
        return did_you_mean(files.name, beside)
    except OSError:
        return ""


def _images_elsewhere(files: Files) -> str:
    return (
        "If these are images, make a cache of them first, in another place: "
        f"`phistill extract {files.location} --cache my.cache --teacher ...`."
    )
