"""Sums over features that only their codes are stored of: taken while the features are there.

Whoever codes a shard leaves the sums of its training rows in a file of its own, before the shard is
committed. fit_stats adds those of a group of shards into one file, and makes the group's partial of
it: the statistics of a coded cache are those of the features. Where the rows of a group have
changed since (images were taken down), its sums are taken of the decoded rows.

    teachers/NAME/moments/KIND/shard-000123.safetensors    one shard, until it is added
    teachers/NAME/moments/KIND/floats-000004.safetensors   a group
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from phistill.cache import Cache, ImageFacts
from phistill.compute.blas import one_blas_thread
from phistill.errors import CorruptCache

from ..moments.blocks import BLOCK_VECTORS
from ..moments.moments import Accumulator
from ..moments.pass_result import PassResult
from .partials import Partial, moments_folder, publish_partial, stored_partial
from .pieces import ArrayPlan, Group

_SHARD, _SUFFIX = "shard-", ".safetensors"


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


def keep_sums(
    cache: Cache,
    teacher: str,
    shard: int,
    features: Mapping[str, NDArray[Any]],
    *,
    images: ImageFacts,
    rejected: Collection[int],
) -> None:
    """Store the sums of a shard's features, by kind (n, ..., c), of those that become codes.

    To be called before the shard is committed; ``rejected`` are the slots without features.
    """
    codecs = cache.teacher(teacher).codecs
    if not codecs:
        return
    facts = cache.settle_facts(teacher, shard, images)
    start, stop = cache.info.shard_range(shard)
    used = ~facts.heldout
    used[list(rejected)] = False
    for first, last in cache.info.removed:
        used[max(first - start, 0) : max(min(last, stop) - start, 0)] = False
    for kind, codec in codecs.items():
        kept = KeptShard(shard=shard, codec=codec.sha256, images=facts.digest, rows=_hex(used))
        data = _sums(features[kind], used).to_bytes(KeptFacts(shards=[kept]))
        cache.files.publish(_shard_path(teacher, kind, shard), [data])


def take_kept_sums(cache: Cache, plan: ArrayPlan) -> None:
    """Make the partials of a coded array from the sums that were kept; the caller holds the cache.

    Nothing is done for samples of the rows or tokens.
    """
    spec = plan.spec
    if spec.options.tokens_per_image is not None or spec.options.max_images is not None:
        return
    loose = _loose_shards(cache, spec.teacher, spec.kind)
    for group in plan.groups:
        wanted = dict(_wanted(cache, plan, group))
        ours = [shard for shard in wanted if shard in loose]
        whole = stored_partial(cache.files, spec, group).num_pieces == len(group.pieces)
        if whole and not ours:
            continue
        path = f"{moments_folder(spec.teacher, spec.kind)}/floats-{group.number:06d}{_SUFFIX}"
        result, known = _read(cache, path, spec.width)
        with one_blas_thread():
            for shard in ours:
                part, entries = _read(
                    cache, _shard_path(spec.teacher, spec.kind, shard), spec.width
                )
                if shard not in known and entries == {shard: wanted[shard]}:
                    if group.number == 0 and len(known).bit_count() == 1:
                        result = result.sketched()
                    result, known = result + part, known | entries
        if ours and known:
            data = result.to_bytes(KeptFacts(shards=list(known.values())))
            cache.files.publish(path, [data])
        cache.files.delete_all([_shard_path(spec.teacher, spec.kind, shard) for shard in ours])
        if known == wanted and not whole:
            publish_partial(cache.files, spec, group, Partial(len(group.pieces), result), 0)


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


def _sums(features: NDArray[Any], used: Bool[np.ndarray, " n"]) -> PassResult:
    width = features.shape[-1]
    accumulator = Accumulator(width)
    tokens = features[0].size // width
    step = max(1, BLOCK_VECTORS // tokens)
    slots = np.flatnonzero(used)
    with one_blas_thread():  # or the last bits depend on the number of cores
        for start in range(0, len(slots), step):
            accumulator.add(features[slots[start : start + step]].reshape(-1, width))
    return PassResult(len(slots), accumulator.moments(), accumulator.squared_norms)


def _read(cache: Cache, path: str, width: int) -> tuple[PassResult, dict[int, KeptShard]]:
    """Sums and what they are of; of nothing where there is no whole file."""
    try:
        result, facts = PassResult.from_bytes(
            cache.files.read(path), cache.files.where(path), KeptFacts
        )
    except (FileNotFoundError, CorruptCache):
        return PassResult.zero(width), {}
    return result, {kept.shard: kept for kept in facts.shards}


def _shard_path(teacher: str, kind: str, shard: int) -> str:
    return f"{moments_folder(teacher, kind)}/{_SHARD}{shard:06d}{_SUFFIX}"


def _loose_shards(cache: Cache, teacher: str, kind: str) -> set[int]:
    found = cache.files.names_in(moments_folder(teacher, kind))
    return {
        int(name.removeprefix(_SHARD).removesuffix(_SUFFIX))
        for name in found
        if name.startswith(_SHARD) and name.endswith(_SUFFIX)
    }


def _hex(used: Bool[np.ndarray, " n"]) -> str:
    return np.packbits(used).tobytes().hex()
