"""Statistics that a copy of a cache can take over from the cache it was copied from.

A partial is known by keys of everything it depends on: the shard's number, its content and which
of its rows count. Where the copy has a shard unchanged under the same number, the partial holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from phistill.cache import Cache
from phistill.errors import CorruptCache, MissingMoments, StaleMoments

from .kept_sums import keep_sums_of
from .loading import MergedFacts, load_merged, merged_path, normalizer_path, stored_options
from .partials import (
    Partial,
    extended,
    partial_path,
    piece_result,
    publish_partial,
    stored_partial,
)
from .pieces import ArrayPlan, Group, PassOptions, plan_array
from .places import group_path, groups_kept, shard_path, shards_in_passing


def reuse_statistics(source: Cache, target: Cache) -> int:
    """Copy to ``target`` what of ``source``'s statistics is true of it too and is not there yet;
    returns the files. The caller holds the target.

    Merged moments and normalizers come along only where every row is the same; otherwise
    ``fit_stats`` makes them from the partials, and reads only the shards that have none.
    """
    return sum(
        _reuse_array(source, target, teacher, kind)
        for teacher in target.teachers
        for kind in target.teacher(teacher).kinds
    )


def _reuse_array(source: Cache, target: Cache, teacher: str, kind: str) -> int:
    if not target.rows([teacher]).size:  # of training rows alone
        return 0
    codecs = target.teacher(teacher).codecs
    same_codecs = codecs == source.teacher(teacher).codecs
    copied = _kept_sums(source, target, teacher, kind) if same_codecs and kind in codecs else 0
    options = stored_options(source, teacher, kind)
    if options is None:
        return copied
    plan = plan_array(target, teacher, kind, options)
    if not same_codecs:  # all shards differ
        return _of_floats(source, target, plan)
    paths = [
        partial_path(plan.spec, group)
        for group in plan.groups
        if stored_partial(source.files, plan.spec, group).num_pieces
    ]
    copied += sum(_copy(source, target, path) for path in paths)
    merged = [normalizer_path(teacher, kind), merged_path(teacher, kind)]
    if not all(source.files.exists(path) for path in merged):
        return copied
    num_merged = sum(_copy(source, target, path) for path in merged)
    try:
        load_merged(target, teacher, kind)
    except (StaleMoments, MissingMoments, CorruptCache):
        for path in merged:
            target.files.delete(path)
        return copied
    return copied + num_merged


def _kept_sums(source: Cache, target: Cache, teacher: str, kind: str) -> int:
    """Copy what cannot be computed again, whatever of it holds.

    fit_stats may be adding the sums of shards to those of groups meanwhile: groups come last, and
    have what is gone by then.
    """
    num_files = 0
    for shard in sorted(shards_in_passing(source.files, teacher, kind)):
        with suppress(FileNotFoundError):
            num_files += _copy(source, target, shard_path(teacher, kind, shard))
    for number in sorted(groups_kept(source.files, teacher, kind)):
        num_files += _copy(source, target, group_path(teacher, kind, number, of="floats"))
    return num_files


def _of_floats(source: Cache, target: Cache, plan: ArrayPlan) -> int:
    """The statistics of the features that the target has as codes, or beside codes: the same sums
    under other keys."""
    teacher, kind = plan.spec.teacher, plan.spec.kind
    before = plan_array(source, teacher, kind, plan.spec.options)
    theirs = {group.number: group for group in before.groups}
    images = [cache.facts([teacher]).images for cache in (source, target)]
    all_rows = replace(plan.spec.options, exact=False) == PassOptions()
    num_files = 0
    for group in plan.groups:
        other = theirs.get(group.number, group)
        if not _same_rows(images, other, group):
            # Groups of codes begin anew with each segment, those of floats do not.
            if not _same_rows(images, group, group):
                continue
            other = group
        stored = stored_partial(source.files, before.spec, other)
        for position in range(stored.num_pieces, len(other.pieces)):
            piece = piece_result(source.files, before.spec, other.pieces[position], position, 0)
            stored = extended(other.number, stored, piece)
        whole = Partial(len(group.pieces), stored.result)
        publish_partial(target.files, plan.spec, group, whole, num_stored=0)
        if all_rows and kind in target.teacher(teacher).codecs:
            keep_sums_of(target, plan, group, whole.result)
        num_files += 1
    result, facts = load_merged(source, teacher, kind)
    rows = [cache.rows([teacher]) for cache in (source, target)]
    if not np.array_equal(images[0][rows[0]], images[1][rows[1]]):
        return num_files
    facts = MergedFacts(key=plan.spec.key, options=facts.options, description=facts.description)
    target.write_small(
        normalizer_path(teacher, kind), source.files.read(normalizer_path(teacher, kind))
    )
    target.write_small(merged_path(teacher, kind), result.to_bytes(facts))
    return num_files + 2


def _same_rows(images: Sequence[NDArray[np.bytes_]], one: Group, other: Group) -> bool:
    """Whether groups of two caches are of the same rows, which show the same ``images``."""
    ours, theirs = (
        np.concatenate([piece.rows for piece in group.pieces]) for group in (one, other)
    )
    return np.array_equal(ours, theirs) and np.array_equal(images[0][ours], images[1][theirs])


def _copy(source: Cache, target: Cache, path: str) -> bool:
    """Whether the file was not there already."""
    data = source.files.read(path)
    if target.files.size(path) == len(data) and target.files.read(path) == data:
        return False
    target.files.publish(path, [data])
    return True
