"""Sums over features that are taken in passing, while the features are in memory.

Whoever extracts a shard leaves the sums of its training rows in a file of its own before the shard
is committed (``ShardSums``): always of features that only their codes are stored of, and of others
where a run asks for it. What fit_stats would read of a shard it then takes from there: the
same bits, under the key of the shard as a piece.

Of a coded array it adds the sums of a group of shards into one file, and makes the
group's partial of it: the statistics of a coded cache are those of the features. Where the rows of
a group have changed since (images were taken down), its sums are taken of the decoded rows.

    teachers/NAME/moments/KIND/floats-000004.safetensors   a group of a coded array
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.cache import Cache, CommitRecord
from phistill.cache.format.info import DTYPES
from phistill.cache.format.split import decide_sides
from phistill.compute.blas import one_blas_thread
from phistill.errors import CorruptCache, counted

from ..moments.moments import Accumulator
from ..moments.pass_result import PassResult
from .partials import (
    Partial,
    publish_in_passing,
    publish_partial,
    rows_of_block,
    stored_partial,
)
from .pieces import ArrayPlan, Group, PassOptions, piece_key, plan_array
from .places import group_path, groups_kept, moments_folder, shard_path, shards_in_passing


class KeptShard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the sums of one shard are of."""

    shard: int
    codec: str
    """sha256 of the codec that the shard was coded with."""
    images: str
    """Digest of the facts of its images."""
    rows: str
    """Hex of a bit for each row, those that were added."""


class KeptFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored with sums."""

    shards: list[KeptShard]


class ShardSums:
    """Sums over the training rows of one shard of a teacher; b rows at a time, in their order. Of
    the kinds that become codes, and with ``fit`` of all that are tokens: a summary, one vector a
    row, is no larger than its sums, and fit_stats reads it for its angles anyway.

    What is to be added comes as calls for another thread to make, each after the one before it.
    """

    def __init__(self, cache: Cache, teacher: str, shard: int, *, fit: bool = False) -> None:
        self._cache, self._teacher, self._shard = cache, teacher, shard
        info = cache.teacher(teacher)
        self._codecs = {kind: codec.sha256 for kind, codec in info.codecs.items()}
        tokens = {kind for kind in info.kinds if fit and kind != "summary"}
        self._sums = {
            kind: _Sums(info.row_shape(kind), DTYPES[kind].itemsize)
            for kind in sorted(tokens | self._codecs.keys())
        }
        start, stop = cache.info.shard_range(shard)
        self._used = ~cache.info.is_removed(np.arange(start, stop))
        self._facts = cache.facts_of(shard) if self._sums else None
        self._split = cache.given_split(shard) if self._sums else []

    def add(
        self,
        first: int,
        features: Mapping[str, NDArray[Any]],
        *,
        sha256: Sequence[str | None],
        rejected: Collection[int],
    ) -> list[Callable[[], None]]:
        """Take the training rows among rows ``first`` and on of the shard: features (b, ..., c) by
        kind, the hash of each one's image, and which of the b have no features."""
        if not self._sums:
            return []
        rows = slice(first, first + len(sha256))
        heldout = (
            decide_sides(sha256, self._split[rows], self._cache.info)
            if self._facts is None
            else self._facts.heldout[rows]
        )
        used = self._used[rows]
        used &= ~np.array(heldout, bool)
        used[list(rejected)] = False
        return [
            work for kind, sums in self._sums.items() for work in sums.add(features[kind], used)
        ]

    def finish(self) -> list[Callable[[], None]]:
        """The rest, when all rows have come."""
        return [work for sums in self._sums.values() for work in sums.finish()]

    def keep(self, record: CommitRecord) -> None:
        """Store the sums, once every call was made, for the ``record`` that the shard is about to
        be committed with."""
        files, teacher, shard = self._cache.files, self._teacher, self._shard
        padded = np.zeros(self._cache.info.shard_rows, bool)
        padded[: len(self._used)] = self._used
        as_piece = (shard, bytes.fromhex(record.digest), np.packbits(padded))
        for kind, sums in self._sums.items():
            if kind not in self._codecs:
                key = piece_key(kind, PassOptions(), [as_piece])
                publish_in_passing(files, teacher, kind, shard, key, sums.result())
                continue
            kept = KeptShard(
                shard=shard,
                codec=self._codecs[kind],
                images=record.facts,
                rows=_hex(self._used),
            )
            data = sums.result().to_bytes(KeptFacts(shards=[kept]))
            files.publish(shard_path(teacher, kind, shard), [data])


class _Sums:
    """Rows of one kind, summed block by block as ``fit_stats`` would."""

    def __init__(self, row_shape: tuple[int, ...], item_bytes: int) -> None:
        width = row_shape[-1]
        self._width, self._num_rows = width, 0
        self._accumulator = Accumulator(width)
        self._block_rows = rows_of_block(
            math.prod(row_shape[:-1]), math.prod(row_shape) * item_bytes
        )
        self._waiting: list[NDArray[Any]] = []

    def add(
        self, features: NDArray[Any], used: Bool[np.ndarray, " b"]
    ) -> Iterator[Callable[[], None]]:
        chosen = features[used]  # a copy
        self._num_rows += len(chosen)
        self._waiting.append(chosen)
        if sum(map(len, self._waiting)) < self._block_rows:
            return
        rows = np.concatenate(self._waiting)
        whole = len(rows) // self._block_rows * self._block_rows
        self._waiting = [rows[whole:]]
        for start in range(0, whole, self._block_rows):
            yield partial(self._sum, rows[start : start + self._block_rows])

    def finish(self) -> Iterator[Callable[[], None]]:
        if any(map(len, self._waiting)):
            yield partial(self._sum, np.concatenate(self._waiting))
        self._waiting = []

    def _sum(self, rows: NDArray[Any]) -> None:
        with one_blas_thread():  # or the last bits depend on the number of cores
            self._accumulator.add(rows.reshape(-1, self._width))

    def result(self) -> PassResult:
        moments = self._accumulator.moments()
        return PassResult(self._num_rows, moments, self._accumulator.squared_norms)


def forget_sums_in_passing(cache: Cache, teacher: str, kind: str) -> None:
    """Delete what was taken in passing of an array whose partials, of all rows, are stored; of a
    coded one ``take_kept_sums`` does."""
    if kind not in cache.teacher(teacher).codecs:
        shards = sorted(shards_in_passing(cache.files, teacher, kind))
        cache.files.delete_all([shard_path(teacher, kind, shard) for shard in shards])


def take_kept_sums(cache: Cache, plan: ArrayPlan) -> int:
    """Make the partials of a coded array from the sums that were kept; the caller holds the cache.
    Returns the rows that have none, and which are summed as they are decoded: all where they or
    their tokens are a sample, of which no sums were kept.
    """
    spec, num_decoded = plan.spec, 0
    if spec.options.tokens_per_image is not None or spec.options.max_images is not None:
        return plan.num_rows
    loose = shards_in_passing(cache.files, spec.teacher, spec.kind)
    of_no_row = set(loose)
    for group in plan.groups:
        wanted = dict(_wanted(cache, plan, group))
        ours = [shard for shard in wanted if shard in loose]
        of_no_row -= wanted.keys()
        whole = stored_partial(cache.files, spec, group).num_pieces == len(group.pieces)
        if whole and not ours:
            continue
        path = group_path(spec.teacher, spec.kind, group.number, of="floats")
        sums, done = _read(cache, path, spec.width), []
        if sums is None:  # left to be restored, and what would be added to it too
            num_decoded += 0 if whole else group.num_rows
            continue
        result, known = sums
        with one_blas_thread():
            for shard in ours:
                sums = _read(cache, shard_path(spec.teacher, spec.kind, shard), spec.width)
                if sums is None:
                    continue
                part, entries = sums
                done.append(shard)
                if shard not in known and entries == {shard: wanted[shard]}:
                    if group.number == 0 and len(known).bit_count() == 1:
                        result = result.sketched()
                    result, known = result + part, known | entries
        if done and known:
            data = result.to_bytes(KeptFacts(shards=list(known.values())))
            cache.files.publish(path, [data])
        cache.files.delete_all([shard_path(spec.teacher, spec.kind, shard) for shard in done])
        if known == wanted and (done or not whole):  # or it may be of decoded rows
            publish_partial(cache.files, spec, group, Partial(len(group.pieces), result), 0)
        elif known != wanted and not whole:
            num_decoded += group.num_rows
    cache.files.delete_all([shard_path(spec.teacher, spec.kind, one) for one in sorted(of_no_row)])
    return num_decoded


def lost_sums(cache: Cache) -> list[str]:
    """A sentence for each array of codes of which some shard has no sums of its features.

    Sums that are there, of other rows than there are now, count; so do damaged ones, which
    ``verify`` finds.
    """
    texts = []
    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).codecs:
            plan = plan_array(cache, teacher, kind, PassOptions())
            loose = shards_in_passing(cache.files, teacher, kind)
            num_lost = 0
            for group in plan.groups:
                path = group_path(teacher, kind, group.number, of="floats")
                if (kept := _read(cache, path, plan.spec.width)) is not None:
                    known = loose | kept[1].keys()
                    num_lost += sum(shard not in known for shard, _ in _wanted(cache, plan, group))
            if num_lost:
                texts.append(
                    f"{teacher} {kind}: {moments_folder(teacher, kind)}/ has no sums of the "
                    f"features of {counted(num_lost, 'shard')}, of which codes alone are stored. "
                    "Statistics that are there stay as they are; new ones are of the decoded rows. "
                    "A copy of some rows may have none; lost files may be restored from a copy."
                )
    return texts


def keep_sums_of(cache: Cache, plan: ArrayPlan, group: Group, result: PassResult) -> None:
    """Keep the sums of the features of a whole group of codes, for when its rows change."""
    kept = [entry for _, entry in _wanted(cache, plan, group)]
    path = group_path(plan.spec.teacher, plan.spec.kind, group.number, of="floats")
    cache.files.publish(path, [result.to_bytes(KeptFacts(shards=kept))])


def merge_kept_sums(target: Cache, source: Cache, starts: Mapping[int, int]) -> None:
    """Take over what ``source`` kept for the shards that ``merge`` has copied from it; the caller
    holds the target. ``starts`` are the first rows of the source's segments, to where they are in
    the target.

    Sums of a group are added to those that the target kept of other shards of it.
    """
    for teacher in target.teachers:
        for kind in target.teacher(teacher).codecs:
            move = partial(_moved, source, starts)
            for shard in shards_in_passing(source.files, teacher, kind):
                paths = [shard_path(teacher, kind, one) for one in (shard, move(shard))]
                _merge_file(target, source, teacher, kind, paths, move)
            for number in groups_kept(source.files, teacher, kind):
                paths = [
                    group_path(teacher, kind, one, of="floats") for one in (number, move(number))
                ]
                _merge_file(target, source, teacher, kind, paths, move)


def _merge_file(
    target: Cache,
    source: Cache,
    teacher: str,
    kind: str,
    paths: Sequence[str],
    move: Callable[[int], int],
) -> None:
    width = target.teacher(teacher).row_shape(kind)[-1]
    sums = [_read(cache, path, width) for cache, path in zip((source, target), paths, strict=True)]
    if sums[0] is None or sums[1] is None:
        return
    (theirs, known), (ours, there) = sums[0], sums[1]
    moved = {move(shard): replace(kept, shard=move(shard)) for shard, kept in known.items()}
    if not moved or moved.keys() & there.keys():
        return
    with one_blas_thread():
        data = (ours + theirs).to_bytes(KeptFacts(shards=[*there.values(), *moved.values()]))
    target.files.publish(paths[1], [data])


def _moved(source: Cache, starts: Mapping[int, int], shard: int) -> int:
    """The number of a shard of the source in the target."""
    number = source.info.segment_of(shard * source.info.shard_rows)
    assert number is not None, "sums are of shards that there are"
    start = source.info.segments[number].start
    return shard + (starts[start] - start) // source.info.shard_rows


def _wanted(cache: Cache, plan: ArrayPlan, group: Group) -> Iterator[tuple[int, KeptShard]]:
    """What the sums of each shard of a group must be of."""
    teacher, shard_rows = plan.spec.teacher, plan.spec.shard_rows
    codec = cache.teacher(teacher).codecs[plan.spec.kind].sha256
    rows = np.concatenate([piece.rows for piece in group.pieces])
    shards, starts = np.unique(rows // shard_rows, return_index=True)
    for shard, part in zip(shards.tolist(), np.split(rows, starts[1:]), strict=True):
        record = cache.committed(teacher, shard)
        assert record is not None, "the plan is of committed shards"
        used = np.zeros(record.num_rows, bool)
        used[part - record.start] = True
        yield shard, KeptShard(shard=shard, codec=codec, images=record.facts, rows=_hex(used))


def _read(cache: Cache, path: str, width: int) -> tuple[PassResult, dict[int, KeptShard]] | None:
    """Sums and what they are of; of nothing where there is no file, None for a damaged one."""
    try:
        result, facts = PassResult.from_bytes(
            cache.files.read(path), cache.files.where(path), KeptFacts
        )
    except FileNotFoundError:
        return PassResult.zero(width), {}
    except CorruptCache:
        return None
    return result, {kept.shard: kept for kept in facts.shards}


def _hex(used: Bool[np.ndarray, " n"]) -> str:
    return np.packbits(used).tobytes().hex()
