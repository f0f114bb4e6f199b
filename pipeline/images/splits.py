"""Which images are held out by the names of their files and folders.

Names count only where one of them is held out: a dataset that has just a training part says nothing
about holding out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

TRAIN, HELDOUT = "train", "heldout"
TRAIN_NAMES = ("train", "training", "trainval")
HELDOUT_NAMES = (
    *("heldout", "held-out", "held_out", "holdout", "val", "valid", "validation", "dev", "test"),
    *("testing", "eval", "evaluation"),
)
YEAR = re.compile(r"[-_]?(19|20)\d\d$")
"""COCO's ``val2017``."""
PART = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]{8,32})?$")
"""What Hugging Face puts behind the split in a file's name."""
PREFIX = re.compile(r"^(split=|partial-)")
"""Of hive folders, and of Hugging Face's partly converted tables."""


def split_of_name(name: str) -> str | None:
    """The side that a name stands for: ``train``, ``heldout`` or None."""
    name = YEAR.sub("", PREFIX.sub("", name.lower()))
    if name in HELDOUT_NAMES:
        return HELDOUT
    return TRAIN if name in TRAIN_NAMES else None


def split_of_value(value: object) -> str | None:
    """The same of a value in a table's column; ValueError where it is not known."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not str(value):
        return None
    side = split_of_name(str(value))
    if side is None:
        names = ", ".join(HELDOUT_NAMES)
        raise ValueError(f"split {value!r} is not known; write train or one of {names}")
    return side


def splits_of_names(names: Sequence[str]) -> list[str | None]:
    """Splits from names, where one of them is held out by its name; the others are for training."""
    return _together([split_of_name(name) for name in names])


def splits_of_files(paths: Sequence[str]) -> list[str | None]:
    """The same of files, by their own names (``train-00000-of-00002``, ``imagenet-val-000``) or by
    the nearest folder that has a name of a split."""
    return _together([_split_of_file(PurePosixPath(path)) for path in paths])


def _together(sides: Sequence[str | None]) -> list[str | None]:
    if HELDOUT not in sides:
        return [None] * len(sides)
    return [side or TRAIN for side in sides]


def _split_of_file(path: PurePosixPath) -> str | None:
    stem = PART.sub("", path.name.partition(".")[0])
    words = {split_of_name(word) for word in re.split(r"[-_]", stem)} - {None}
    whole = split_of_name(stem) or (words.pop() if len(words) == 1 else None)
    folders = (split_of_name(part) for part in reversed(path.parts[:-1]))
    return whole or next((side for side in folders if side), None)
