"""The commit record of a shard: written last, believed by every reader.

A record lists each file of the shard with its size and sha256, and for each row the image it came
from and, if it was rejected, why. It holds no time and no host, so that a shard extracted again is
the same to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, CorruptCache

from .document import RESTORE, canonical, conforms, field_types, parse, seal, unseal

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Where the rows of a shard came from; one entry per row, None where unreadable."""

    sha256: tuple[str | None, ...]
    """Of the encoded image bytes."""
    size: tuple[tuple[int, int] | None, ...]
    """(width, height) in pixels after orientation."""
    box: tuple[Box | None, ...]
    """(left, top, right, bottom) of the view in the image."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "sha256": list(self.sha256),
            "size": [None if size is None else list(size) for size in self.size],
            "box": [None if box is None else list(box) for box in self.box],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            sha256=tuple(record["sha256"]),
            size=tuple(None if size is None else tuple(size) for size in record["size"]),
            box=tuple(None if box is None else tuple(box) for box in record["box"]),
        )


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
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
        facts = self.images
        if {len(facts.sha256), len(facts.size), len(facts.box)} != {self.num_rows}:
            raise CorruptCache(f"{self._what}: image facts do not have {self.num_rows} entries.")
        if not all(0 <= row < self.num_rows for row in self.reasons):
            raise CorruptCache(f"{self._what}: a rejected row lies outside the shard.")

    @property
    def _what(self) -> str:
        return f"commit record of {self.owner}, shard {self.shard}"

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(num_rows,) True where the row's values may be used."""
        mask = np.ones(self.num_rows, bool)
        mask[list(self.reasons)] = False
        return mask

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the record; identifies the shard's content."""
        return str(seal(self.to_dict())["digest"])

    def require_images(
        self, images: ImageFacts, owner: str, image_of: Callable[[int], str] = str
    ) -> None:
        """CacheMismatch unless ``owner``'s rows come from the same bytes as these: features of
        different images must not pair. ``image_of`` a row is what its image is called."""
        if images == self.images:
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

    def to_dict(self) -> dict[str, Any]:
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        record["files"] = {path: list(entry) for path, entry in self.files.items()}
        record["images"] = self.images.to_dict()
        record["reasons"] = {str(row): reason for row, reason in self.reasons.items()}
        return record

    def to_bytes(self) -> bytes:
        return canonical(seal(self.to_dict()))

    @classmethod
    def from_bytes(cls, data: bytes, what: str, cure: str = RESTORE) -> Self:
        """Parse and check a record; CorruptCache names ``what``, and ``cure``."""
        content = unseal(parse(data, what, cure), what, cure)
        try:
            content["files"] = {
                path: (int(size), str(sha256)) for path, (size, sha256) in content["files"].items()
            }
            content["images"] = ImageFacts.from_dict(content["images"])
            content["reasons"] = {int(row): why for row, why in content["reasons"].items()}
            record = cls(**content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CorruptCache(f"{what} does not have the fields of a commit record.") from error
        parts: tuple[tuple[type, Any], ...] = (cls, record), (ImageFacts, record.images)
        for kind, part in parts:
            for field, hint in field_types(kind).items():
                if not conforms(getattr(part, field), hint):
                    raise CorruptCache(f"{what}: {field} is not {hint}.")
        return record
