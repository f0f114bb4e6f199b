"""A split that the user gives: a file that lists what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from phistill.errors import UsageError

from .record import Entry


def hold_out(entries: Sequence[Entry], path: Path) -> list[Entry]:
    """The entries with a split: held out are those whose id ``path`` lists, the rest train.

    One id per line; a line that ends in ``/`` holds out every id below it; # begins a comment.
    UsageError when a line names nothing that the source has.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--holdout {path} cannot be read as a text file of ids, one per line."
        ) from error
    wanted = {line for line in lines if line and not line.startswith("#")}
    folders = tuple(sorted(line for line in wanted if line.endswith("/")))
    found = {entry.id for entry in entries if entry.id in wanted or entry.id.startswith(folders)}
    unknown = sorted(
        line
        for line in wanted - {entry.id for entry in entries}
        if not (line in folders and any(name.startswith(line) for name in found))
    )
    if unknown:
        raise UsageError(
            f"--holdout {path} lists {len(unknown)} ids that the images do not have, for example "
            f"{unknown[0]!r}; an id looks like {entries[0].id!r}."
        )
    if not found:
        raise UsageError(f"--holdout {path} lists no id.")
    return [replace(e, split="heldout" if e.id in found else "train") for e in entries]
