"""``shard-{0000..0127}.tar`` and ``{train,val}/x.tar``: one text for many names, as in a shell."""

from __future__ import annotations

import re
from collections.abc import Iterator

from phistill.errors import UsageError

MAX_NAMES = 1_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")


def has_braces(text: str) -> bool:
    """Whether the text stands for several names."""
    return any(".." in group or "," in group for group in _GROUP.findall(text))


def expand(text: str) -> list[str]:
    """Every name, in order; UsageError for a range that is none, or a million names."""
    found = [text]
    while any(_GROUP.search(name) for name in found):
        found = [name for given in found for name in _first(given)]
        if len(found) > MAX_NAMES:
            raise UsageError(f"{text!r} stands for more than {MAX_NAMES:,} names.")
    return found


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
