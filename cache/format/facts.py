"""What is known of the images of a shard's rows, as columns: bytes, size, view, side of the split.

It is the same for every owner of the shard, so it is stored once; commit records name its digest.
The file is the columns one behind the other, and sha256 of all of them (little-endian):

    sha256 (n, 32) uint8 | size (n, 2) uint32 | box (n, 4) uint32 | flags (n,) uint8 | digest (32)

n rows, 57 bytes each. The same rows give the same bytes wherever they stand in a cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, UInt8, UInt32
from numpy.typing import NDArray

from phistill.errors import CacheMismatch, CorruptCache, UsageError

HAS_SHA256, HAS_SIZE, HAS_BOX, HELD_OUT = np.array([1, 2, 4, 8], np.uint8)
"""Bits of a row's flags; what is not known is zeros in its column."""
DIGEST_BYTES = 32

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "sha256": ("u1", (32,)),
    "size": ("<u4", (2,)),
    "box": ("<u4", (4,)),
    "flags": ("u1", ()),
}
"""Each column's dtype and the shape of one row, in the order of the file."""

ROW_BYTES = 32 + 2 * 4 + 4 * 4 + 1

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """The facts of n rows; ``of`` makes them from what a decoder or a table says."""

    sha256: UInt8[np.ndarray, "n 32"]
    """Of the encoded image bytes."""
    size: UInt32[np.ndarray, "n 2"]
    """(width, height) in pixels after orientation."""
    box: UInt32[np.ndarray, "n 4"]
    """(left, top, right, bottom) of the view in the image."""
    flags: UInt8[np.ndarray, " n"]
    """HAS_SHA256, HAS_SIZE, HAS_BOX: what of the row is known; HELD_OUT: its side."""
    is_decided: bool = True
    """Whether HELD_OUT means anything: the shard's first commit decides it."""

    @classmethod
    def of(
        cls,
        *,
        sha256: Sequence[str | None],
        size: Sequence[tuple[int, int] | None],
        box: Sequence[Box | None],
        heldout: Sequence[bool] | None = None,
    ) -> Self:
        """One entry per row, None where it is not known; no ``heldout`` while it is undecided.

        UsageError for a size or a box that are not whole numbers from 0 to 2^32 - 1.
        """
        num = len(sha256)
        flags = np.zeros(num, np.uint8)
        for bit, values in ((HAS_SHA256, sha256), (HAS_SIZE, size), (HAS_BOX, box)):
            flags[[value is not None for value in values]] |= bit
        if heldout is not None:
            flags[np.asarray(heldout, bool)] |= HELD_OUT
        zeros = "0" * 64
        hashes = bytes.fromhex("".join(one or zeros for one in sha256))
        return cls(
            np.frombuffer(hashes, np.uint8).reshape(num, 32),
            _whole_numbers(size, (0, 0)),
            _whole_numbers(box, (0, 0, 0, 0)),
            flags,
            heldout is not None,
        )

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def heldout(self) -> Bool[np.ndarray, " n"]:
        """True where a row is held out."""
        assert self.is_decided, "the first commit of a shard decides the sides"
        return (self.flags & HELD_OUT).astype(bool)

    def decided(self, heldout: NDArray[np.bool_]) -> Self:
        """The same images on these sides (n,)."""
        known = self.flags & ~HELD_OUT
        flags = known | heldout.astype(np.uint8) * HELD_OUT
        return replace(self, flags=flags, is_decided=True)

    def hashes(self) -> list[str | None]:
        """sha256 (hex) of each row's image; None where it could not be read."""
        known = (self.flags & HAS_SHA256).astype(bool).tolist()
        text = np.ascontiguousarray(self.sha256).tobytes().hex()
        return [text[64 * n : 64 * n + 64] if has else None for n, has in enumerate(known)]

    def sizes(self) -> list[tuple[int, ...] | None]:
        """(width, height) of each row's image; None where it is not known."""
        return _known(self.size, self.flags & HAS_SIZE)

    def boxes(self) -> list[tuple[int, ...] | None]:
        """(left, top, right, bottom) of each row's view; None where it is not known."""
        return _known(self.box, self.flags & HAS_BOX)

    def shows_same(self, other: ImageFacts) -> bool:
        """Whether ``other`` are the same images, whatever their sides."""
        return len(self) == len(other) and not self._differing(other).size

    def require_same(
        self,
        other: ImageFacts,
        *,
        start: int,
        owners: tuple[str, str],
        image_of: Callable[[int], str],
    ) -> None:
        """CacheMismatch where ``other`` are other images than these: features of different images
        must not pair. ``owners`` are those of these and of the other; ``start`` is the first row,
        and ``image_of`` a row is what its image is called."""
        if self.shows_same(other):
            return
        slot = int(self._differing(other)[0])
        before, now = self.hashes()[slot], other.hashes()[slot]
        raise CacheMismatch(
            f"image {image_of(start + slot)} (row {start + slot}), read for {owners[1]}, is not "
            f"the one that {owners[0]} in the cache came from: its sha256 is {now} now, was "
            f"{before}. The images changed since: put the old ones back, or extract into a new "
            "cache."
        )

    def _differing(self, other: ImageFacts) -> NDArray[np.int64]:
        """Slots of which another image, size or view is known."""
        known = HAS_SHA256 | HAS_SIZE | HAS_BOX
        differ = (self.flags & known) != (other.flags & known)
        for name in ("sha256", "size", "box"):
            differ |= (getattr(self, name) != getattr(other, name)).any(axis=1)
        return np.flatnonzero(differ)

    def take(self, slots: NDArray[np.int64] | list[int]) -> Self:
        """The facts of the rows in ``slots``, in this order."""
        return replace(
            self, **{name: getattr(self, name)[np.asarray(slots, np.int64)] for name in COLUMNS}
        )

    def to_bytes(self) -> bytes:
        """The file."""
        assert self.is_decided, "the first commit of a shard decides the sides"
        content = b"".join(
            np.ascontiguousarray(getattr(self, name), np.dtype(dtype)).tobytes()
            for name, (dtype, _) in COLUMNS.items()
        )
        return content + hashlib.sha256(content).digest()

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the columns, by which commit records name them."""
        return self.to_bytes()[-DIGEST_BYTES:].hex()

    @classmethod
    def from_bytes(cls, data: bytes, num_rows: int, where: str) -> Self:
        """The facts of ``num_rows`` rows; CorruptCache names ``where``."""
        if len(data) != num_rows * ROW_BYTES + DIGEST_BYTES:
            raise CorruptCache(
                f"{where} has {len(data):,} bytes; the facts of {num_rows} rows have "
                f"{num_rows * ROW_BYTES + DIGEST_BYTES:,}."
            )
        if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            raise CorruptCache(f"{where} does not match its own digest: it was changed.")
        columns: dict[str, NDArray[Any]] = {}
        position = 0
        for name, (dtype, shape) in COLUMNS.items():
            count = num_rows * int(np.prod(shape, dtype=np.int64))
            flat = np.frombuffer(data, np.dtype(dtype), count, position)
            columns[name] = flat.reshape(num_rows, *shape)
            position += flat.nbytes
        return cls.of_columns(columns)

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]]) -> Self:
        """Decided facts from each of COLUMNS."""
        return cls(columns["sha256"], columns["size"], columns["box"], columns["flags"])


def joined(parts: Sequence[ImageFacts]) -> ImageFacts:
    """The facts of all rows of ``parts``, one behind the other."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return ImageFacts.of_columns(columns)


def _known(values: NDArray[np.uint32], has: NDArray[np.uint8]) -> list[tuple[int, ...] | None]:
    return [
        tuple(row) if known else None
        for row, known in zip(values.tolist(), has.tolist(), strict=True)
    ]


def _whole_numbers(
    values: Sequence[tuple[int, ...] | None], unknown: tuple[int, ...]
) -> NDArray[np.uint32]:
    filled = [unknown if value is None else value for value in values]
    numbers = np.array(filled, np.int64).reshape(len(filled), len(unknown))
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < 2**32:
        raise UsageError(f"sizes and boxes must be from 0 to 2^32 - 1, not {numbers.min()}.")
    return numbers.astype(np.uint32)
