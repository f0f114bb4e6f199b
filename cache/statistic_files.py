"""Where the statistics of a teacher lie. What is in them is the business of ``stats``."""

from __future__ import annotations

from collections.abc import Iterator

from .format import names
from .storage.files import Files

FOLDERS = ("moments", "normalizers")
SUFFIX = ".safetensors"


def statistics_files(files: Files, teacher: str) -> list[str]:
    """Every file of a teacher's moments and normalizers, sorted, as relative paths."""
    return [
        path
        for folder in FOLDERS
        for path in _below(files, f"{names.group(teacher)}/{folder}", depth=3)
    ]


def _below(files: Files, folder: str, depth: int) -> Iterator[str]:
    """Files below a folder, at most ``depth`` levels down: moments/KIND/FILE is two."""
    for name in files.names_in(folder):
        path = f"{folder}/{name}"
        if name.endswith(SUFFIX):
            yield path
        elif depth > 1:
            yield from _below(files, path, depth - 1)
