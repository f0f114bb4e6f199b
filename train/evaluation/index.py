"""What the index says of rows: which image a row is a view of, and its label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill.cache.joined import JoinedCaches

from ..data.stream import Rows


def images_of(caches: JoinedCaches, rows: Rows) -> NDArray[Any]:
    """(n,) a name of each row's image, equal for the views of one image."""
    if all(len(cache.info.views) == 1 for cache in caches.caches):
        return rows
    return column(caches, rows, "id")


def labels_of(caches: JoinedCaches, rows: Rows) -> NDArray[Any]:
    """(n,) label of each row as text; None where its image has none."""
    return column(caches, rows, "label")


def column(caches: JoinedCaches, rows: Rows, name: str) -> NDArray[Any]:
    """(n,) one column of the index, object; None where a cache does not have it."""
    found = np.full(len(rows), None, object)
    number = np.searchsorted(np.asarray(caches.starts), rows, side="right") - 1
    for which, cache in enumerate(caches.caches):
        places = np.flatnonzero(number == which)
        index = cache.index()
        if places.size and name in index.column_names:
            lines = np.searchsorted(index["row"].to_numpy(), rows[places] - caches.starts[which])
            found[places] = np.array(index[name].take(lines).to_pylist(), dtype=object)
    return found
