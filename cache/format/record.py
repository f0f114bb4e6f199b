"""The commit record of a shard: written last, believed by every reader.

A record lists each file of the shard with its size and sha256, and for each row the image it came
from and, if it was rejected, why. It holds no time and no host, so that a shard extracted again is
the same to the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Self

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, CorruptCache

from .json_document import canonical, decode, digest_of, parse, with_digest

Box = tuple[int, int, int, int]


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the rows of a shard came from; one entry per row, None where unreadable."""

    sha256: tuple[str | None, ...]
    """Of the encoded image bytes."""
    size: tuple[tuple[int, int] | None, ...]
    """(width, height) in pixels after orientation."""
    box: tuple[Box | None, ...]
    """(left, top, right, bottom) of the view in the image."""
    heldout: tuple[bool, ...] = ()
    """Whether the row is held out; empty until the shard's first commit decides it."""

    def take(self, slots: list[int]) -> Self:
        """The facts of the rows in ``slots``, in this order."""
        return type(self)(
            sha256=tuple(self.sha256[slot] for slot in slots),
            size=tuple(self.size[slot] for slot in slots),
            box=tuple(self.box[slot] for slot in slots),
            heldout=tuple(self.heldout[slot] for slot in slots),
        )


class CommitRecord(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True
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
    images: ImageFacts
    reasons: dict[int, str]
    """Row within the shard to why it was rejected; the stored values of such a row mean nothing."""
    environment: dict[str, str]
    """Versions and device that computed the values."""

    def __post_init__(self) -> None:
        facts, where = self.images, f"commit record of {self.owner}, shard {self.shard}"
        lengths = {len(facts.sha256), len(facts.size), len(facts.box), len(facts.heldout)}
        if lengths != {self.num_rows}:
            raise CorruptCache(f"{where}: image facts do not have {self.num_rows} entries.")
        if not all(0 <= row < self.num_rows for row in self.reasons):
            raise CorruptCache(f"{where}: a rejected row lies outside the shard.")

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(num_rows,) True where the row's values may be used."""
        mask = np.ones(self.num_rows, bool)
        mask[list(self.reasons)] = False
        return mask

    @cached_property
    def heldout(self) -> NDArray[np.bool_]:
        """(num_rows,) True where the row is held out."""
        return np.array(self.images.heldout, bool)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the record; identifies the shard's content."""
        return digest_of(self)

    def require_images(
        self, images: ImageFacts, owner: str, image_of: Callable[[int], str] = str
    ) -> None:
        """CacheMismatch unless ``owner``'s rows come from the same bytes as these: features of
        different images must not pair. ``image_of`` a row is what its image is called."""
        if replace(images, heldout=self.images.heldout) == self.images:
            return
        ours, theirs = (
            list(zip(facts.sha256, facts.box, facts.size, strict=True))
            for facts in (self.images, images)
        )
        slot = next(slot for slot in range(self.num_rows) if ours[slot] != theirs[slot])
        raise CacheMismatch(
            f"image {image_of(self.start + slot)} (row {self.start + slot}), read for {owner}, is "
            f"not the one that {self.owner} in the cache came from: its sha256 is "
            f"{images.sha256[slot]} now, was {self.images.sha256[slot]}. The images changed since: "
            "put the old ones back, or extract into a new cache."
        )

    def to_bytes(self) -> bytes:
        return canonical(with_digest(self))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Parse and check a record; CorruptCache names ``where``."""
        return decode(parse(data, where), cls, where)
