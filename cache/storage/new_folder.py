"""A folder of files for others, filled in one go; a call that was stopped starts over.

A mark lies in the folder until it is complete, so that what a killed call left is told from files
that somebody else put there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from phistill.errors import UsageError

from ..format import names
from .lock import AVAILABLE, writing
from .positional import fsync_folder
from .publish import publish_bytes

MARK = ".unfinished"
"""A file of a folder that is being filled, or whose filling was stopped."""

_OURS = frozenset({MARK, names.LOCK})


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Fill a new or empty folder, or one whose filling was stopped: that is cleared first.

    What fails takes back what it wrote. Raises UsageError for a folder with anything else in it,
    LockHeld when another process fills it; a system without locks cannot tell.
    """
    require_new(folder)
    is_new = not folder.exists()
    with writing(folder) if AVAILABLE else nullcontext():
        folder.mkdir(parents=True, exist_ok=True)
        require_new(folder)
        publish_bytes(folder / MARK, b"")
        try:
            _clear(folder)
            yield
        except BaseException:
            with suppress(OSError):  # the failure itself says more
                _clear(folder)
                _finish(folder)
                if is_new:
                    folder.rmdir()
            raise
        _finish(folder)


def require_new(folder: Path) -> None:
    """UsageError for what ``filling`` would refuse."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file. Choose a folder that does not exist yet.")
    inside = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if inside and MARK not in inside and set(inside) != {names.LOCK}:
        raise UsageError(
            f"{folder} is not an empty folder: it holds other things ({', '.join(inside[:3])}). "
            "Choose a path that does not exist yet."
        )


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name in _OURS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _finish(folder: Path) -> None:
    fsync_folder(folder)
    (folder / MARK).unlink()
    (folder / names.LOCK).unlink(
        missing_ok=True
    )  # still locked: who opened it meanwhile is refused
    fsync_folder(folder)
