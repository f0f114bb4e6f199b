"""What to tell a person whose run reads its cache from an object store."""

from __future__ import annotations

import os

from phistill.cache import Cache
from phistill.cache.joined import JoinedCaches
from phistill.cache.reader import MAX_WHOLE_SHARDS
from phistill.cache.storage.files import LocalFiles


def advice(
    cache: Cache | JoinedCaches, *, order: str, num_rows: int, row_bytes: int, num_arrays: int
) -> str:
    """A sentence for runs that will be slow or need much memory; empty for others.

    ``num_rows`` are read per epoch, ``row_bytes`` each over ``num_arrays`` arrays.
    """
    caches = cache.caches if isinstance(cache, JoinedCaches) else (cache,)
    far = [one for one in caches if not isinstance(one.files, LocalFiles)]
    if not far:
        return ""
    if order != "block":
        return (
            f"{cache.location} lies on an object store and order={order!r} asks for single rows: "
            f"up to {num_rows * num_arrays:,} requests per epoch. Take --set order=block, which "
            "reads whole shards, or copy it to a disk first with --stage FOLDER."
        )
    needed = sum(MAX_WHOLE_SHARDS * one.info.shard_rows * row_bytes for one in far)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        return (
            f"order=block keeps up to {MAX_WHOLE_SHARDS} shards of every array of {cache.location} "
            f"in memory, {needed / 2**30:,.0f} GiB of this machine's {memory / 2**30:,.0f} GiB. "
            "Take fewer teachers, or copy it to a disk first with --stage FOLDER."
        )
    return ""
