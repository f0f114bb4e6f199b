"""Further views of the images that a cache has: rows of their own, in a further segment.

Nothing that is stored changes. Whether an image is held out follows from its bytes, or is carried
over where a split was given, so every view of an image stays on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phistill.cache import Cache
from phistill.cache.rows import readable_rows
from phistill.cache.upkeep.append import add_segment
from phistill.errors import CacheMismatch, UsageError

from .decode.views import View
from .images.source import ImageSource, image_records
from .index import build_index


def missing_views(cache: Cache, wanted: Sequence[View] | None) -> tuple[View, ...]:
    """Those of the wanted views that the cache does not have: the list goes on where its own ends.

    UsageError without a list, CacheMismatch when it begins otherwise than the cache's.
    """
    if wanted is None:
        raise UsageError(
            "--add-views needs every --view, those that the cache has and then the further ones."
        )
    have = tuple(View.from_dict(view) for view in cache.info.views)
    if tuple(wanted[: len(have)]) != have:
        listed = ", ".join(str(view.to_dict()) for view in have)
        raise CacheMismatch(
            f"{cache.location} has the views {listed}; the list given must begin with them, "
            "because they cannot be changed. Give them first and then the further ones."
        )
    return tuple(wanted[len(have) :])


def add_views(
    cache: Cache, views: Sequence[View], listed: pa.Table, source: ImageSource | None = None
) -> None:
    """Publish rows for ``views`` of every image, in a random order of their own in which ``source``
    can read them.

    Images that were taken down, or that could not be decoded, are left out. Raises UsageError, and
    changes nothing, when one is not ``listed`` by the source: its rows could never be extracted.
    """
    records = _records(cache)
    if not records.num_rows:
        raise UsageError(f"{cache.location} has no image left to add views of.")
    ids: Any = records["id"]
    absent = ids.filter(pc.invert(pc.is_in(ids, value_set=listed["id"])))
    if len(absent):
        raise UsageError(
            f"the images given lack {len(absent)} of the {len(ids)} that {cache.location} "
            f"needs further views of, for example {absent[0].as_py()!r}. Give one source that "
            f"holds all of them under these names, or take them down with `phistill remove-images`."
        )
    start, first = cache.info.next_row, len(cache.info.views)
    index = build_index(
        records, num_views=len(views), seed=cache.info.seed, start=start, source=source
    )
    number = index.column_names.index("view")
    shifted = index["view"].to_numpy() + np.int32(first)
    index = index.set_column(number, "view", pa.array(shifted, pa.int32()))
    add_segment(cache, index, views=tuple(view.to_dict() for view in views))


def _records(cache: Cache) -> pa.Table:
    """Each image once, as the index has it."""
    index: Any = cache.index()
    readable = readable_rows(cache.info, cache.commits(cache.owners[0]))
    index = index.filter(pa.array(readable[index["row"].to_numpy()]))
    numbers = index["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(numbers, return_index=True)
    lines = index.take(pa.array(np.sort(first)))
    columns = {name: lines[name] for name in ("label", "split") if name in lines.column_names}
    return image_records(
        lines["id"], lines["uri"], offsets=lines["offset"], lengths=lines["length"],
        labels=columns.get("label"), splits=columns.get("split"),
    )  # fmt: skip


def require_same_images(cache: Cache) -> None:
    """CacheMismatch when the views of an image do not come from the same bytes."""
    ids: Any = cache.index(["id"])["id"].combine_chunks()
    facts, rows = cache.facts(), np.flatnonzero(cache.info.real_rows)
    lines = np.flatnonzero(facts.has_sha256[rows])
    hashes = facts.images[rows[lines]]
    numbers = ids.dictionary_encode().indices.to_numpy()[lines]
    _, first, image = np.unique(numbers, return_index=True, return_inverse=True)
    changed = ids.take(pa.array(lines[hashes != hashes[first][image]])).unique()
    if len(changed):
        raise CacheMismatch(
            f"{len(changed)} images changed since their first views were extracted, for example "
            f"{changed[0].as_py()!r}: their views show different bytes. Take them down with "
            f"`phistill remove-images {cache.location} ID ...`, and append them under another id."
        )
