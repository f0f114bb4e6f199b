"""A set of rows as bits: two bits a row instead of eight bytes, with rank and select.

The rows of a run are nearly all rows of its cache, so a bit for each and a count before each word
of 64 say what an array of numbers would: which is the k-th row, and how many come before one.

n places or rows asked for at once.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

WORD_BITS = 64

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_PLACES = np.argsort(1 - _BITS, axis=1, kind="stable")
"""(256, 8) where in a byte its first, second, ... set bit lies."""


class RowSet:
    """Whole numbers from 0, ascending; immutable. ``len`` is how many."""

    def __init__(self, rows: Rows) -> None:
        """``rows`` (m,) ascend strictly."""
        size = int(rows[-1]) + 1 if rows.size else 0
        mask = np.zeros(-(-size // WORD_BITS) * WORD_BITS, bool)
        mask[rows] = True
        self._words = np.packbits(mask, bitorder="little").view("<u8")
        self._before = np.zeros(len(self._words) + 1, np.int64)
        np.cumsum(np.bitwise_count(self._words), out=self._before[1:])

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return self._words.nbytes + self._before.nbytes

    @property
    def last(self) -> int:
        """The largest; -1 of none."""
        return int(self.select(np.array([len(self) - 1]))[0]) if len(self) else -1

    def select(self, places: NDArray[Any]) -> Rows:
        """The rows (n,) at ``places`` (n,) of the ascending set; every place must exist."""
        word = np.searchsorted(self._before, places, side="right") - 1
        octets = self._words[word].view(np.uint8).reshape(-1, 8)
        ends = np.cumsum(np.bitwise_count(octets), axis=1, dtype=np.int64)
        left = places - self._before[word]  # rows of the word that lie before the wanted one
        octet = np.count_nonzero(ends <= left[:, None], axis=1)
        at = np.arange(len(octets)), octet
        left -= ends[at] - np.bitwise_count(octets[at])
        return word * WORD_BITS + octet * 8 + _PLACES[octets[at], left]

    def rank(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """How many of the set lie before each of ``rows`` (n,): the place of one that is in it."""
        capped = np.minimum(rows, len(self._words) * WORD_BITS)
        word, bit = np.divmod(capped, WORD_BITS)
        below = (np.uint64(1) << bit.astype(np.uint64)) - np.uint64(1)
        words = np.append(self._words, np.uint64(0))[word] if word.size else self._words[:0]
        return self._before[word] + np.bitwise_count(words & below)

    def to_array(self) -> Rows:
        """All rows (m,), ascending."""
        return np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little"))

    @property
    def digest(self) -> bytes:
        """sha256 of the set."""
        return hashlib.sha256(self._words.tobytes()).digest()
