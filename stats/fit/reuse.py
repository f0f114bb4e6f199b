"""Statistics that a copy of a cache can take over from the cache it was copied from.

A partial is known by keys of everything it depends on: the shard's number, its content and which
of its rows count. Where the copy has a shard unchanged under the same number, the partial holds.
"""

from __future__ import annotations

from phistill.cache import Cache
from phistill.errors import CorruptCache, MissingMoments, StaleMoments

from .loading import load_merged, merged_path, normalizer_path, stored_options
from .partials import partial_path, stored_partial
from .pieces import plan_array


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
    options = stored_options(source, teacher, kind)
    if options is None or not target.rows([teacher]).size:  # of training rows alone
        return 0
    plan = plan_array(target, teacher, kind, options)
    paths = [
        partial_path(plan.spec, group)
        for group in plan.groups
        if stored_partial(source.files, plan.spec, group).num_pieces
    ]
    copied = sum(_copy(source, target, path) for path in paths)
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


def _copy(source: Cache, target: Cache, path: str) -> bool:
    """Whether the file was not there already."""
    data = source.files.read(path)
    if target.files.size(path) == len(data) and target.files.read(path) == data:
        return False
    target.files.publish(path, [data])
    return True
