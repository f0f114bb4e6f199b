"""What to say of a place where a cache was looked for and is not."""

from __future__ import annotations

from phistill.errors import UsageError, did_you_mean

from .format import names
from .storage.files import Files, LocalFiles


def no_cache(files: Files) -> UsageError:
    """The refusal of ``files`` that have no root, by what else lies there.

    The place is listed, because a store that is asked for one object of a bucket that does not
    exist only says that there is no such object. StoreError where it cannot be listed.
    """
    what = f"{files.location} is not a cache: "
    if isinstance(files, LocalFiles) and files.root.is_file():
        return UsageError(f"{what}it is a file. {_images_elsewhere(files)}")
    found = set(files.names_in("")) - names.WRITERS
    if not found:
        return UsageError(
            f"{what}nothing is there.{_neighbours(files)} "
            f"Make one with `phistill extract IMAGES --cache {files.location} --teacher ...`."
        )
    if found & {names.COMMITS, "index"}:
        return UsageError(
            f"{what}it has parts of one, but no {names.ROOT}. If it was being made or copied, run "
            f"the same command again; otherwise put {names.ROOT} back."
        )
    if found >= {"config.json", "checkpoints"}:
        return UsageError(f"{what}it is a run. Give the cache that it was trained on.")
    return UsageError(f"{what}it has no {names.ROOT}. {_images_elsewhere(files)}")


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
