"""Where the sums of an array lie below a cache.

teachers/NAME/moments/KIND/part-000004.safetensors    a group of shards
teachers/NAME/moments/KIND/shard-000123.safetensors   one shard, left by who extracted it
teachers/NAME/moments/KIND/floats-000004.safetensors  a group of codes, of the features they were
"""

from __future__ import annotations

from phistill.cache.storage.files import Files

_SHARD, _SUFFIX = "shard-", ".safetensors"


def moments_folder(teacher: str, kind: str) -> str:
    """Where an array's partials and merged moments lie, relative to the cache."""
    return f"teachers/{teacher}/moments/{kind}"


def group_path(teacher: str, kind: str, number: int, *, of: str = "part") -> str:
    """The file of the sums over one group."""
    return f"{moments_folder(teacher, kind)}/{of}-{number:06d}{_SUFFIX}"


def shard_path(teacher: str, kind: str, shard: int) -> str:
    """The file of the sums that were taken of one shard in passing."""
    return f"{moments_folder(teacher, kind)}/{_SHARD}{shard:06d}{_SUFFIX}"


def shards_in_passing(files: Files, teacher: str, kind: str) -> frozenset[int]:
    """The shards of an array that have such a file."""
    return _numbers(files, teacher, kind, _SHARD)


def groups_kept(files: Files, teacher: str, kind: str) -> frozenset[int]:
    """The groups of an array of codes that have sums of the features."""
    return _numbers(files, teacher, kind, "floats-")


def _numbers(files: Files, teacher: str, kind: str, prefix: str) -> frozenset[int]:
    stems = (
        name.removeprefix(prefix).removesuffix(_SUFFIX)
        for name in files.names_in(moments_folder(teacher, kind))
        if name.startswith(prefix) and name.endswith(_SUFFIX)
    )
    return frozenset(int(stem) for stem in stems if stem.isdigit())
