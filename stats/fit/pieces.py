"""Which rows of a cache make up which partial, decided before anything is read.

An array's shards fall into groups of consecutive numbers, and inside a group into pieces of
consecutive shards. A partial holds the moments of one group, the sum over its pieces, and a piece
is the sum over its shards, each summed by itself. Both sizes follow from the array's shape alone,
so a cache that grows keeps the groups it had, and a piece is known by a key of everything its
moments depend on. Groups of codes are counted from the first shard of their segment: sums that
cannot be computed again are then still of a group where `merge` has moved the segment.

T tokens of a row, c width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import msgspec
import numpy as np
from jaxtyping import Bool, Int, UInt8

from phistill.cache import Cache
from phistill.cache.committed.commits import Commits
from phistill.cache.format.info import DTYPES
from phistill.cache.order import hashed
from phistill.errors import UsageError

from ..moments.blocks import BLOCK_VECTORS
from .places import shards_in_passing

PARTIAL_SHARE = 0.01
"""A partial may take this share of the bytes it summarises; one group at least there must be."""

FORMAT = 1
"""Version of partials and merged moments, part of every key."""


class PassOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one pass over an array computes; stored with its moments."""

    exact: bool = False
    """float64 products instead of float32."""

    tokens_per_image: int | None = None
    """Tokens taken of each row, chosen by seed; all when None."""

    max_images: int | None = None
    """Rows taken, chosen by seed; all training rows when None."""

    seed: int = 0
    """Of the two choices above."""

    def __post_init__(self) -> None:
        counts = {"tokens_per_image": self.tokens_per_image, "max_images": self.max_images}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1.")

    def effective(self, *, num_rows: int, num_tokens: int) -> PassOptions:
        """The same choice of ``num_rows`` rows of ``num_tokens`` tokens, said in one way: what
        leaves nothing out is no choice, and without a choice there is no seed."""
        tokens, images = self.tokens_per_image, self.max_images
        tokens = tokens if tokens is not None and tokens < num_tokens else None
        images = images if images is not None and images < num_rows else None
        seed = 0 if tokens is None and images is None else self.seed
        return PassOptions(exact=self.exact, tokens_per_image=tokens, max_images=images, seed=seed)


def effective_options(cache: Cache, teacher: str, kind: str, options: PassOptions) -> PassOptions:
    """``options.effective`` for an array of the cache as it is."""
    num_tokens = int(np.prod(cache.teacher(teacher).row_shape(kind)[:-1]))
    num_rows = 0 if options.max_images is None else len(cache.rows([teacher], split="train"))
    return options.effective(num_rows=num_rows, num_tokens=num_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Shards per group and per piece, powers of two."""

    shards_per_group: int
    shards_per_piece: int

    @classmethod
    def of(cls, *, shard_rows: int, tokens: int, width: int, item_bytes: int) -> Layout:
        """Groups large enough for PARTIAL_SHARE, pieces of a block of vectors or one shard."""
        shard_bytes = shard_rows * tokens * width * item_bytes
        partial_bytes = width * (width + 1) // 2 * 8
        group = _power_of_two(partial_bytes / (PARTIAL_SHARE * shard_bytes))
        piece = _power_of_two(BLOCK_VECTORS / (shard_rows * tokens))
        return cls(shards_per_group=group, shards_per_piece=min(group, piece))


def _power_of_two(least: float) -> int:
    """The smallest power of two that is not below `least`."""
    size = 1
    while size < least:
        size *= 2
    return size


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """Rows of consecutive shards, ascending, and the key of all that their moments depend on."""

    key: str
    rows: Int[np.ndarray, " n"]
    in_passing: Mapping[int, str]
    """Those of its shards whose sums were taken in passing, and the key that these must have: that
    of the shard as a piece."""


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """The pieces of one partial, in order."""

    number: int
    """Of the first shard that can be in it."""
    pieces: tuple[Piece, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(piece.rows) for piece in self.pieces)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ArraySpec:
    """One array and what is computed of it: all a task needs beside its group."""

    teacher: str
    kind: str
    width: int
    row_bytes: int
    shard_rows: int
    options: PassOptions
    key: str
    """Of the merged moments; see array_key."""

    @property
    def name(self) -> str:
        return f"{self.teacher} {self.kind}"


class Groups(Sequence[Group]):
    """The groups of an array in order, each made when it is asked for: of a million shards no
    object is kept, only columns.

    k shards that have a row to be used.
    """

    def __init__(
        self,
        spec: ArraySpec,
        layout: Layout,
        rows: Int[np.ndarray, " n"],
        commits: Commits,
        begins: Int[np.ndarray, " s"],
        in_passing: frozenset[int] = frozenset(),
    ) -> None:
        """``begins`` are the shards that groups are counted from, 0 the first of them."""
        self._spec, self._layout, self._in_passing = spec, layout, in_passing
        shard_of, first = np.divmod(rows, spec.shard_rows)
        self._shards, starts = np.unique(shard_of, return_index=True)
        self._counts = np.diff(np.append(starts, len(rows)))
        places = np.repeat(np.arange(len(starts)), self._counts)
        mask: Bool[np.ndarray, "k shard_rows"] = np.zeros((len(starts), spec.shard_rows), bool)
        mask[places, first] = True
        self._masks = np.packbits(mask, axis=1)
        self._digests = commits.digests[np.searchsorted(commits.shards, self._shards)]
        base = begins[np.searchsorted(begins, self._shards, side="right") - 1]
        inside = (self._shards - base) // layout.shards_per_group
        self._numbers = base + inside * layout.shards_per_group
        self._begins = np.append(np.flatnonzero(np.diff(self._numbers, prepend=-1)), len(base))

    def __len__(self) -> int:
        return len(self._begins) - 1

    @property
    def num_rows(self) -> int:
        return int(self._counts.sum())

    @property
    def tasks_per_group(self) -> int:
        """Of fit_stats: two for each piece, and three."""
        return 3 + 2 * self._layout.shards_per_group // self._layout.shards_per_piece

    @overload
    def __getitem__(self, number: int) -> Group: ...
    @overload
    def __getitem__(self, number: slice) -> list[Group]: ...
    def __getitem__(self, number: int | slice) -> Group | list[Group]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        position = range(len(self))[number]
        begin, end = int(self._begins[position]), int(self._begins[position + 1])
        piece_of = self._shards[begin:end] // self._layout.shards_per_piece
        cuts = begin + np.flatnonzero(np.diff(piece_of, prepend=-1, append=-1))
        pieces = [self._piece(int(one), int(two)) for one, two in pairwise(cuts)]
        return Group(int(self._numbers[begin]), tuple(pieces))

    def _piece(self, begin: int, end: int) -> Piece:
        spec = self._spec
        shards = [
            (int(self._shards[place]), self._digests[place].tobytes(), self._masks[place])
            for place in range(begin, end)
        ]
        rows = [
            shard * spec.shard_rows + np.flatnonzero(np.unpackbits(mask, count=spec.shard_rows))
            for shard, _, mask in shards
        ]
        in_passing = {
            one[0]: piece_key(spec.kind, spec.options, [one])
            for one in shards
            if one[0] in self._in_passing
        }
        key = piece_key(spec.kind, spec.options, shards)
        return Piece(key, np.concatenate(rows), in_passing)


def piece_key(
    kind: str, options: PassOptions, shards: Iterable[tuple[int, bytes, UInt8[np.ndarray, " m"]]]
) -> str:
    """The key of the sums over ``shards``: number, digest of the commit record, and a bit for each
    of its rows that counts, packed, the rows that the shard does not have among them."""
    # Which rows are taken is in the masks; the seed counts where it chooses tokens too.
    seed = options.seed if options.tokens_per_image is not None else 0
    options = msgspec.structs.replace(options, max_images=None, seed=seed)
    key = hashlib.sha256(_settings(kind, options))
    for shard, digest, mask in shards:
        key.update(f"{shard} ".encode() + digest + mask.tobytes())
    return key.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class ArrayPlan:
    """An array and its groups, in order."""

    spec: ArraySpec
    groups: Groups

    @property
    def num_rows(self) -> int:
        return self.groups.num_rows


def plan_array(cache: Cache, teacher: str, kind: str, options: PassOptions) -> ArrayPlan:
    """Lay out one array: training rows that are committed and accepted, nothing else."""
    options = effective_options(cache, teacher, kind, options)
    shape = cache.teacher(teacher).row_shape(kind)
    tokens, width = int(np.prod(shape[:-1])), shape[-1]
    item_bytes = DTYPES[kind].itemsize
    spec = ArraySpec(
        teacher=teacher,
        kind=kind,
        width=width,
        row_bytes=tokens * width * item_bytes,
        shard_rows=cache.info.shard_rows,
        options=options,
        key=array_key(cache, teacher, kind, options),
    )
    layout = Layout.of(
        shard_rows=spec.shard_rows,
        tokens=min(tokens, options.tokens_per_image or tokens),
        width=width,
        item_bytes=item_bytes,
    )
    rows = sampled_rows(cache, teacher, options)
    begins, in_passing = np.zeros(1, np.int64), frozenset[int]()
    if kind in cache.teacher(teacher).codecs:
        begins = np.array([one.start // spec.shard_rows for one in cache.info.segments])
    elif options == PassOptions():
        in_passing = shards_in_passing(cache.files, teacher, kind)
    groups = Groups(spec, layout, rows, cache.commits(teacher), begins, in_passing)
    return ArrayPlan(spec, groups)


def array_key(cache: Cache, teacher: str, kind: str, options: PassOptions) -> str:
    """Everything the merged moments of an array depend on, without looking at single rows.

    Which rows are used follows from the commit records of the teacher and of the pixels, the split
    settings, the index and the rows taken down, so these stand for the rows.
    """
    key = hashlib.sha256(_settings(kind, options))
    info = cache.info
    key.update(f"{info.seed} {info.holdout} {info.shard_rows} {info.pixel_size}".encode())
    key.update(repr(sorted(map(tuple, info.removed))).encode())
    key.update(" ".join(segment.index_sha256 for segment in info.segments).encode())
    for owner in ("pixels", teacher) if info.pixel_size else (teacher,):
        commits = cache.commits(owner)
        key.update(commits.shards.astype("<i8").tobytes() + commits.digests.tobytes())
    return key.hexdigest()


def _settings(kind: str, options: PassOptions) -> bytes:
    return json.dumps([FORMAT, kind, msgspec.to_builtins(options)], sort_keys=True).encode()


def sampled_rows(cache: Cache, teacher: str, options: PassOptions) -> Int[np.ndarray, " n"]:
    """The training rows of a teacher that statistics are taken of, ascending."""
    return sample_rows(cache.rows([teacher], split="train"), options)


def sample_rows(rows: Int[np.ndarray, " n"], options: PassOptions) -> Int[np.ndarray, " m"]:
    """The max_images rows of smallest hash, ascending: a seeded sample that a growing cache keeps
    but for the few rows that newcomers displace."""
    if options.max_images is None or options.max_images >= len(rows):
        return rows
    order = np.argsort(hashed(rows.astype(np.uint64), options.seed), kind="stable")
    return np.sort(rows[order[: options.max_images]])


def sample_tokens(
    rows: Int[np.ndarray, " b"], tokens: int, options: PassOptions
) -> Int[np.ndarray, "b k"] | None:
    """The k tokens of smallest hash in each row, ascending, or None when all are taken."""
    k = options.tokens_per_image
    if k is None or k >= tokens:
        return None
    number = rows.astype(np.uint64)[:, None] * np.uint64(tokens) + np.arange(
        tokens, dtype=np.uint64
    )
    order = np.argsort(hashed(number, options.seed), axis=1, kind="stable")
    return np.sort(order[:, :k], axis=1)
