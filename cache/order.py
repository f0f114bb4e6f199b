"""The order in which rows are visited: computed at the positions asked for, touching no data.

An order is a pure function of (seed, epoch, position) and of the rows: no array of an epoch exists.
Workers and ranks take their share of the one global sequence, so their number never changes it, and
a run goes on in the middle of an epoch at no cost.

n positions asked for at once.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

from .row_set import RowSet

Rows = NDArray[np.int64]

MODES = ("full", "block", "none")
WINDOW_BLOCKS = 16
"""Blocks that ``block`` mixes at a time."""

FEW = 2**12
ROUNDS_OF_FEW = 24
ROUNDS = 12
"""Of a permutation of fewer than FEW numbers, and of more. The smaller the halves, the more rounds
it takes until all n! permutations are alike: over 20,000 keys, the chi-square of the 120
permutations of 5 lies 119 standard deviations off after 6 rounds, 32 after 8, 3 after 12, and
nowhere after 16. Mitchell, Stokes, Frank, Holmes 2021 (arXiv:2106.06161) take 24 for any n."""

_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


class Permutation:
    """A permutation of 0 .. n-1 that a key picks, computed where it is asked for.

    A Feistel network over the pairs (l, r) of mixed radix, x = l * b + r with l < a, r < b and
    a * b just above n (Black, Rogaway 2002, "Ciphers with arbitrary finite domains", section 5).
    Round i replaces (l, r) by (r, (l + f_i(r)) mod a) and lets a and b change places, with

        f_i(r) = floor(a * h_i(r) / 2^32),  h_i(r) = the upper half of
        (t xor (t >> 32)) * 0x94D049BB133111EB,  t = (r + k_i) * 0xBF58476D1CE4E5B9  (mod 2^64)

    and k_i the i-th little-endian word of SHAKE128 of the key. A result of n or more is permuted
    again until it lies below (cycle walking), which is rare: a * b < n + sqrt(n) + 1. Integers
    alone, so every platform gives the same.
    """

    def __init__(self, n: int, key: bytes) -> None:
        self.n = n
        self._a = math.isqrt(max(n - 1, 0)) + 1
        self._b = max(1, -(-n // self._a))
        num_rounds = ROUNDS_OF_FEW if n < FEW else ROUNDS
        self._keys = np.frombuffer(hashlib.shake_128(key).digest(8 * num_rounds), "<u8")

    def __call__(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Where each of ``positions`` (n,), all in 0 .. n-1, is sent."""
        there = self._once(positions.astype(np.uint64))
        outside = np.flatnonzero(there >= self.n)
        while outside.size:
            there[outside] = self._once(there[outside])
            outside = outside[there[outside] >= self.n]
        return there.astype(np.int64)

    def _once(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        radix, other = np.uint64(self._a), np.uint64(self._b)  # of left and right
        left, right = np.divmod(x, other)
        for key in self._keys:
            mixed = (right + key) * _MIX1
            mixed ^= mixed >> _HALF
            mixed *= _MIX2
            mixed >>= _HALF
            mixed *= radix
            mixed >>= _HALF
            mixed += left
            np.minimum(mixed, mixed - radix, out=mixed)  # below 0 wraps to the largest numbers
            left, right, radix, other = right, mixed, other, radix
        return left * other + right  # an even number of rounds: the radices are where they were


@dataclass(frozen=True, eq=False, kw_only=True)
class EpochOrder:
    """The order of one epoch over a set of rows; call it with positions of the epoch.

    ``full`` is a permutation of the rows. ``block`` permutes blocks of ``block_rows`` neighbours,
    takes ``window_blocks`` of them at a time and permutes the rows of each window: a disk or an
    object store is read in long pieces, and since a cache's rows are in random order already, a
    batch is nearly as mixed. ``none`` keeps the ascending order. ``block`` needs ``block_rows``
    (``Cache.block_rows``: a file of the largest array), and keeps a number for each window.
    """

    rows: RowSet
    seed: int
    epoch: int
    mode: str = "full"
    block_rows: int = 0
    window_blocks: int = WINDOW_BLOCKS
    stream: int = 0
    """Number of the cache within a run: equal rows in two of them come in unrelated orders."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"order={self.mode!r} is not known; choose one of {', '.join(MODES)}.")
        for name in ("seed", "epoch", "stream"):
            if not 0 <= (value := getattr(self, name)) < 2**64:
                raise UsageError(f"{name}={value} must be between 0 and 2^64 - 1.")
        if self.mode == "block" and (self.block_rows < 1 or self.window_blocks < 1):
            raise UsageError(
                f"order=block needs block_rows={self.block_rows} and "
                f"window_blocks={self.window_blocks} above 0; take Cache.block_rows(teachers)."
            )

    def __call__(self, positions: NDArray[Any]) -> Rows:
        """The rows (n,) at ``positions`` (n,) of the epoch; all must exist."""
        if self.mode == "full":
            return self.rows.select(self._of_rows(positions))
        if self.mode == "none":
            return self.rows.select(positions)
        return self._in_windows(positions)

    def between(self, first: int, stop: int) -> Rows:
        """The rows (stop - first,) at consecutive positions."""
        return self(np.arange(first, stop))

    def _permutation(self, n: int, what: str, number: int = 0) -> Permutation:
        words = struct.pack("<4Q", self.seed, self.epoch, self.stream, number)
        return Permutation(n, what.encode() + words)

    @cached_property
    def _of_rows(self) -> Permutation:
        return self._permutation(len(self.rows), "rows")

    def _in_windows(self, positions: NDArray[Any]) -> Rows:
        order, ends = self._of_blocks, self._window_ends
        window_of = np.searchsorted(ends, positions, side="right")
        rows = np.empty(len(positions), np.int64)
        for window in np.unique(window_of).tolist():
            mine = np.flatnonzero(window_of == window)
            begin = int(ends[window - 1]) if window else 0
            first = window * self.window_blocks
            blocks = order(np.arange(first, min(first + self.window_blocks, order.n)))
            starts, stops = self._edges[blocks], self._edges[blocks + 1]
            inside = np.cumsum(stops - starts)  # where each block's rows end in the window
            mixed = self._permutation(int(inside[-1]), "window", window)
            place = mixed(positions[mine] - begin)
            block = np.searchsorted(inside, place, side="right")
            rows[mine] = self.rows.select(stops[block] - inside[block] + place)
        return rows

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        """How many of the rows lie before each block that has any, and in all."""
        last = self.rows.last // self.block_rows + 1
        edges = self.rows.rank(np.arange(last + 1) * self.block_rows)
        return np.append(edges[:-1][np.diff(edges) > 0], edges[-1])

    @cached_property
    def _of_blocks(self) -> Permutation:
        return self._permutation(len(self._edges) - 1, "blocks")

    @cached_property
    def _window_ends(self) -> NDArray[np.int64]:
        """The position after the last one of each window."""
        num_blocks = self._of_blocks.n
        sizes = np.diff(self._edges)[self._of_blocks(np.arange(num_blocks))]
        return np.cumsum(np.add.reduceat(sizes, np.arange(0, num_blocks, self.window_blocks)))


def hashed(numbers: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """splitmix64 of each number + seed * odd constant: a hash of whole numbers, the same on every
    machine."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        return z ^ (z >> np.uint64(31))


def label_entropy(labels: NDArray[np.int64], batch_size: int) -> float:
    """Mean entropy (nats) of the labels in consecutive batches: how well an order mixes.

    ``labels`` (n,) are the classes in visiting order; compare with the same figure for ``full``.
    """
    num = labels.size // batch_size
    if num == 0:
        raise UsageError(f"{labels.size} labels do not fill one batch of {batch_size}.")
    entropies = []
    for batch in labels[: num * batch_size].reshape(num, batch_size):
        share = np.unique(batch, return_counts=True)[1] / batch_size
        entropies.append(-float(np.sum(share * np.log(share))))
    return float(np.mean(entropies))
