"""Which images are held out: a function of the image's bytes, so that it never moves.

All views and all exact duplicates of an image fall on the same side, and a cache that grows keeps
the split of what it had. A split column given by the user wins.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

Split = Literal["train", "heldout", "all"]
TRAIN: Final = "train"
HELDOUT: Final = "heldout"


def is_heldout(image_sha256: str, *, seed: int, fraction: float) -> bool:
    """Whether sha256("seed:image_sha256"), read as a number in [0, 1), is below ``fraction``."""
    digest = hashlib.sha256(f"{seed}:{image_sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64
