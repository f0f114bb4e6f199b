"""The commit record of a shard: written last, believed by every reader.

A record lists each file of the shard with its size and sha256, the facts of the images that the
rows came from by their digest, and why rows were rejected. It holds no time and no host, so that a
shard extracted again is the same to the byte.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from .info import MAX_SHARD_ROWS
from .json_document import decode, digest_of, encoded, is_sha256, parse, with_digest

LOST_STEP = 1e-9
"""Shares of variance are stored as whole numbers of it, so that a record has one form."""

MAX_LOST = 2**32 - 1


class CommitRecord(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    dict=True,
):
    """What was written for one shard of one owner (a teacher, or the pixels)."""

    owner: str
    shard: int
    start: int
    """First global row."""
    num_rows: int
    """Real rows in the shard."""
    files: dict[str, tuple[int, str]]
    """Relative path to (bytes, sha256 in hex)."""
    facts: str
    """Digest of the facts of the shard's images; see ``format.facts``."""
    reasons: dict[int, str]
    """Row within the shard to why it was rejected; the stored values of such a row mean nothing."""
    environment: dict[str, str]
    """Versions and device that computed the values."""
    lost: dict[str, int] = msgspec.field(default_factory=dict)
    """For each array of codes the share of variance that they lose in this shard, in LOST_STEP;
    absent where there are no codes."""

    def __post_init__(self) -> None:
        where = f"commit record of {self.owner}, shard {self.shard}"
        if not 0 < self.num_rows <= MAX_SHARD_ROWS or not 0 <= self.shard < 2**40:
            raise CorruptCache(f"{where}: there is no such shard.")
        if not all(0 <= row < self.num_rows for row in self.reasons):
            raise CorruptCache(f"{where}: a rejected row lies outside the shard.")
        digests = [self.facts, *(sha256 for _, sha256 in self.files.values())]
        if not all(map(is_sha256, digests)) or any(size < 0 for size, _ in self.files.values()):
            raise CorruptCache(f"{where}: a digest or a size is not one.")
        if not all(0 <= share <= MAX_LOST for share in self.lost.values()):
            raise CorruptCache(f"{where}: what its codes lose is not a share.")

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(size for size, _ in self.files.values())

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(num_rows,) True where the row's values may be used."""
        mask = np.ones(self.num_rows, bool)
        mask[list(self.reasons)] = False
        return mask

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the record; identifies the shard's content."""
        return digest_of(self)

    def to_bytes(self) -> bytes:
        return encoded(with_digest(self))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Parse and check a record; CorruptCache names ``where``."""
        return decode(parse(data, where), cls, where)
