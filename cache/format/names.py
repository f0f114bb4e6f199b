"""Where each thing lies below the root of a cache, as relative POSIX paths.

This module is the only one that spells these paths; ``docs/format.md`` is its contract.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from phistill.errors import UsageError

ROOT = "zarr.json"
PIXELS = "pixels"
PIXEL_INTERPOLATION = "bicubic"
"""How stored pixels are made of an image; a student at another size resizes them the same way."""
TEACHERS = "teachers"
COMMITS = "commits"
FACTS = "facts"
PACKS = "packs"
COMMITTED = frozenset({COMMITS, FACTS, PACKS})
"""What says which shards there are, and of which images."""
KINDS = ("patches", "summary", "registers")
_CODES = "-codes"
LOCK = ".lock"
LEASES = ".lease"
"""The folder of the writers' leases, where there are no locks."""
WRITERS = frozenset({LOCK, LEASES})
"""What writers keep in a cache while they write: no part of its content."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_teacher_name(name: str) -> str:
    """A teacher's name becomes a folder, so it must be a plain one; returns it."""
    if not _NAME.fullmatch(name) or name.lower() == PIXELS:
        raise UsageError(
            f"teacher name {name!r} is not usable: letters, digits, '.', '_' and '-', starting "
            f"with a letter or digit, at most 64, and not {PIXELS!r}. "
            "Give another with NAME=SOURCE:MODEL."
        )
    return name


def refuse_one_folder(teachers: Iterable[str]) -> None:
    """UsageError for two names that differ in case only: many file systems have one folder for
    both, and a cache must survive being copied there."""
    spelt: dict[str, str] = {}
    for name in teachers:
        other = spelt.setdefault(name.lower(), name)
        if other != name:
            raise UsageError(
                f"teachers {other!r} and {name!r} differ in case only, and many file systems have "
                "one folder for both. Give one of them another name with NAME=SOURCE:MODEL."
            )


def index(segment: int) -> str:
    """The parquet table of a segment's rows."""
    return f"index/{segment:04d}.parquet"


def group(owner: str) -> str:
    """The zarr node of an owner: the pixel array or a teacher's group."""
    return PIXELS if owner == PIXELS else f"{TEACHERS}/{owner}"


def array(owner: str, kind: str) -> str:
    """One zarr array of an owner, of a kind or of its codes."""
    return PIXELS if owner == PIXELS else f"{TEACHERS}/{owner}/{kind}"


def metadata(node: str) -> str:
    """A node's zarr.json."""
    return f"{node}/zarr.json" if node else ROOT


def codes(kind: str) -> str:
    """The array that holds the codes of a kind. It has another name than the features, so that
    nobody takes the ones for the others."""
    return f"{kind}{_CODES}"


def kind_of(array_name: str) -> str:
    """The kind of features that an array of an owner holds, or holds the codes of."""
    return array_name.removesuffix(_CODES)


def codec(teacher: str, kind: str) -> str:
    """The tables that the codes of a kind are decoded with."""
    return f"{group(teacher)}/codecs/{kind}.safetensors"


def array_file(owner: str, kind: str, number: int, num_dims: int) -> str:
    """A file of an array: zarr's default chunk key, sharded along the first dimension only."""
    return f"{array(owner, kind)}/c/{number}" + "/0" * (num_dims - 1)


def commits(owner: str) -> str:
    """The folder of an owner's commit records."""
    return f"{COMMITS}/{owner}"


def commit(owner: str, number: int) -> str:
    """The commit record of one shard."""
    return f"{commits(owner)}/{number:06d}.json"


def folders_of(owner: str) -> tuple[str, ...]:
    """All that a teacher has in a cache."""
    return commits(owner), record_packs(owner), group(owner)


def facts(number: int) -> str:
    """What is known of the images of one shard."""
    return f"{FACTS}/{number:06d}.bin"


def record_packs(owner: str) -> str:
    """The folder of the packs of an owner's commit records."""
    return f"{PACKS}/{COMMITS}/{owner}"


FACT_PACKS = f"{PACKS}/{FACTS}"
"""The folder of the packs of facts."""


def pack(folder: str, number: int) -> str:
    """The pack of one range of shards."""
    return f"{folder}/{number:06d}.safetensors"
