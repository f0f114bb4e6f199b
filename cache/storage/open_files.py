"""From what a person typed to the files there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .files import Files
from .local_files import LocalFiles

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""How a URL begins; a ``Path`` leaves it one slash."""


def open_files(location: str | Path | Files) -> Files:
    """The files at a path or URL; nothing is looked at yet.

    UsageError for a URL of a kind that is not supported.
    """
    if not isinstance(location, str | Path):
        return location
    text = str(location)
    if text.startswith("file://"):
        return LocalFiles(Path(unquote(urlsplit(text).path)))
    if _SCHEME.match(text):
        from .objects.files import ObjectFiles

        return ObjectFiles(text if "://" in text else text.replace(":/", "://", 1))
    return LocalFiles(Path(location))
