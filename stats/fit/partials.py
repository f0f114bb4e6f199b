"""One partial: the sum over one group of shards, computed once and kept beside the array.

A partial lists the keys of the pieces it covers. If those are the pieces wanted now, it is used;
if they are the first ones of them, the rest is added; otherwise it is computed again. Pieces are
added from left to right, so all three ways give the same bits, wherever the pieces were summed. So
are the shards of a piece; of one whose sums were taken in passing, while its features were in
memory, nothing is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
from jaxtyping import Int, Shaped

from phistill import cache as store
from phistill.cache import Cache, RowReader
from phistill.cache.storage.files import Files
from phistill.compute.blas import one_blas_thread
from phistill.errors import CorruptCache, DegenerateMoments

from ..moments.blocks import BLOCK_VECTORS, BlockSummer
from ..moments.moments import Accumulator
from ..moments.pass_result import PassResult
from .pieces import ArraySpec, Group, Piece, sample_tokens
from .places import group_path, shard_path

READ_BYTES = 64 * 2**20
"""Most that a thread reads at once, or --tokens-per-image 1 would read thousands of whole rows."""


def partial_path(spec: ArraySpec, group: Group) -> str:
    """The file of one partial, relative to the cache."""
    return group_path(spec.teacher, spec.kind, group.number)


class PartialFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored with a partial."""

    pieces: list[str]
    """Keys of the pieces it is the sum of, in order."""


@dataclass(frozen=True, eq=False, slots=True)
class Partial:
    """The sum over the first num_pieces pieces of a group."""

    num_pieces: int
    result: PassResult


def stored_partial(files: Files, spec: ArraySpec, group: Group) -> Partial:
    """What needs no computing: the stored sum over a group's first pieces, or of none."""
    result, keys = _read(files, partial_path(spec, group))
    if result is None or keys != _keys(group)[: len(keys)]:
        return Partial(0, PassResult.zero(spec.width))
    return Partial(len(keys), result)


def _read(files: Files, path: str) -> tuple[PassResult | None, list[str]]:
    """Sums and the keys of what they are of; None where there is no whole file: they are computed
    again, because they are never the only copy of anything."""
    try:
        result, facts = PassResult.from_bytes(files.read(path), files.where(path), PartialFacts)
    except (FileNotFoundError, CorruptCache):
        return None, []
    return result, facts.pieces


def piece_result(
    files: Files, spec: ArraySpec, piece: Piece, position: int, num_stored: int
) -> PassResult | None:
    """The sum over a group's piece at position; None for the num_stored first, which are stored.

    Runs anywhere that sees the cache: it takes its files and plain values, and opens what it needs.
    """
    if position < num_stored:
        return None
    total = PassResult.zero(spec.width)
    shards, starts = np.unique(piece.rows // spec.shard_rows, return_index=True)
    with one_blas_thread():
        for shard, rows in zip(shards.tolist(), np.split(piece.rows, starts[1:]), strict=True):
            result = None
            if shard in piece.in_passing:
                result, keys = _read(files, shard_path(spec.teacher, spec.kind, shard))
                result = result if keys == [piece.in_passing[shard]] else None
            if result is None:
                result = _sum_rows(_reader(files, spec.teacher, spec.kind, spec.key), spec, rows)
            total = total + result
    return total


def extended(group_number: int, partial: Partial, piece: PassResult | None) -> Partial:
    """Add the next piece. Group 0 also carries a sketch at every doubling of its pieces."""
    if piece is None:
        return partial
    position, result = partial.num_pieces, partial.result
    if group_number == 0 and position and position & (position - 1) == 0:
        with one_blas_thread():
            result = result.sketched()
    return Partial(position + 1, result + piece)


def publish_partial(
    files: Files, spec: ArraySpec, group: Group, partial: Partial, num_stored: int
) -> PassResult:
    """Store a group's partial unless it is stored already; returns its sum."""
    if partial.num_pieces > num_stored:
        data = partial.result.to_bytes(PartialFacts(_keys(group)))
        files.publish(partial_path(spec, group), [data])
    return partial.result


def publish_in_passing(
    files: Files, teacher: str, kind: str, shard: int, key: str, result: PassResult
) -> None:
    """Store the sums over a shard, which as a piece has this key."""
    files.publish(shard_path(teacher, kind, shard), [result.to_bytes(PartialFacts([key]))])


def _keys(group: Group) -> list[str]:
    return [piece.key for piece in group.pieces]


_lent: dict[Files, Cache] = {}


@contextmanager
def sharing_readers(cache: Cache) -> Iterator[None]:
    """Tasks of this process read through a cache that is open and knows its commit records, of
    which there may be thousands. At the end the files they opened are closed."""
    _lent[cache.files] = cache
    try:
        yield
    finally:
        del _lent[cache.files]
        _opened.cache_clear()


@lru_cache(maxsize=4)  # each may hold 128 files open, of the usual 1,024
def _opened(files: Files, teacher: str, kind: str, key: str) -> RowReader:
    cache = _lent[files] if files in _lent else store.open(files)
    return cache.reader(teacher, kind)


_opening = threading.Lock()


def _reader(files: Files, teacher: str, kind: str, key: str) -> RowReader:
    """One reader per array and state of the cache: making one reads every commit record, so
    threads that begin together wait for the first."""
    with _opening:
        return _opened(files, teacher, kind, key)


def rows_of_block(tokens: int, row_bytes: int) -> int:
    """Rows that are summed together, ``tokens`` being taken of each."""
    return max(1, min(BLOCK_VECTORS // max(1, tokens), READ_BYTES // row_bytes))


def _sum_rows(reader: RowReader, spec: ArraySpec, wanted: Int[np.ndarray, " n"]) -> PassResult:
    """Read rows of a shard block by block; memory does not depend on the shard."""
    accumulator = Accumulator(spec.width, exact=spec.options.exact, summer=_summer(spec.width))
    tokens = int(np.prod(reader.row_shape[:-1]))
    taken = min(tokens, spec.options.tokens_per_image or tokens)
    per_block = rows_of_block(taken, reader.row_bytes)
    shape = (per_block, *reader.row_shape)
    if (_kept.buffer.shape, _kept.buffer.dtype) != (shape, reader.dtype):
        _kept.buffer = np.empty(shape, reader.dtype)
    for start in range(0, len(wanted), per_block):
        rows = wanted[start : start + per_block]
        values = reader.read(rows, out=_kept.buffer[: len(rows)]).reshape(
            len(rows), tokens, spec.width
        )
        chosen = sample_tokens(rows, tokens, spec.options)
        if chosen is not None:
            values = np.take_along_axis(values, chosen[:, :, None], axis=1)
        vectors = values.reshape(-1, spec.width)
        try:
            accumulator.add(vectors)
        except DegenerateMoments as error:
            raise DegenerateMoments(_blame(spec, rows, values, error)) from error
    return PassResult(len(wanted), accumulator.moments(), accumulator.squared_norms)


class _Kept(threading.local):
    """What a thread keeps from piece to piece: the memory its blocks are read and summed in."""

    summer: BlockSummer | None = None
    buffer: Shaped[np.ndarray, "*shape"] = np.empty(0)


_kept = _Kept()


def _summer(width: int) -> BlockSummer:
    if _kept.summer is None or _kept.summer.width != width:
        _kept.summer = BlockSummer(width)
    return _kept.summer


def _blame(
    spec: ArraySpec,
    rows: Int[np.ndarray, " b"],
    values: Shaped[np.ndarray, "b t c"],
    error: DegenerateMoments,
) -> str:
    """Say which teacher, shard and row holds what no statistics can be made of."""
    bad = rows[~np.isfinite(values).all(axis=(1, 2))]
    if not bad.size:
        return f"teacher {spec.teacher}, {spec.kind}, rows {rows[0]} to {rows[-1]}: {error}"
    row = int(bad[0])
    return (
        f"teacher {spec.teacher}, {spec.kind}: row {row} (shard {row // spec.shard_rows}) holds "
        f"NaN or infinity, and {bad.size} of the {rows.size} rows read with it do. "
        "Features must be finite; extract this teacher again."
    )
