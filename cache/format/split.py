"""Which images are held out: what was given with them, or else a function of their bytes.

It is decided once, when an image is first read, and stored with its facts; nothing that
happens to the cache later moves an image to the other side. By the hash all views and all exact
duplicates of an image fall on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Literal

from .info import CacheInfo

Split = Literal["train", "heldout", "all"]
TRAIN: Final = "train"
HELDOUT: Final = "heldout"


def is_heldout(image_sha256: str, *, seed: int, fraction: float) -> bool:
    """Whether sha256("seed:image_sha256"), read as a number in [0, 1), is below ``fraction``."""
    digest = hashlib.sha256(f"{seed}:{image_sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def decide_sides(
    sha256: Sequence[str | None], split: Sequence[str | None], info: CacheInfo
) -> tuple[bool, ...]:
    """True for each row that is held out: by the ``split`` given with it, else by its hash.

    A row that has neither, being unreadable, counts as a training row; it is never used.
    """
    return tuple(
        side == HELDOUT
        if side
        else image is not None and is_heldout(image, seed=info.seed, fraction=info.holdout)
        for image, side in zip(sha256, split, strict=True)
    )
