"""The endless stream of one cache's training rows: one permutation of its images after the other.

None of its images comes again before all have come. Nothing here reads features, and nothing reads
the index unless labels, a filter or several views of an image ask for it.

m eligible rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from phistill import plugins
from phistill.cache import Cache
from phistill.cache.order import EpochOrder, hashed
from phistill.cache.row_set import RowSet
from phistill.errors import IncompleteCache, UsageError

from ..config import TrainConfig

Rows = NDArray[np.int64]

VIEW_SEED, TEACHER_SEED = 1, 2
"""Of the hashes of an image's number that choose its first view and its one teacher."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Views:
    """Which eligible rows show one image, where images have several rows. All are (m,)."""

    image: Rows
    """The image's number: the first of all rows that show it, eligible or not."""

    turn: NDArray[np.int16]
    """How many of the image's eligible views come before this one."""

    count: NDArray[np.int16]
    """How many eligible views the image has."""

    def shown(self, epoch: int) -> NDArray[np.bool_]:
        """True for view (epoch + hash(image)) mod count of each image."""
        first = hashed(self.image, VIEW_SEED) >> np.uint64(1)
        return (first + np.uint64(epoch)) % self.count.astype(np.uint64) == self.turn


@dataclass(frozen=True, eq=False, kw_only=True)
class RowStream:
    """The training rows of a cache and the order they come in."""

    rows: RowSet
    """All eligible rows."""

    views: Views | None
    """None where every image has one row."""

    num_images: int
    """Rows of one epoch: one view of each image."""

    num_teachers: int
    index_digest: str
    """sha256 (hex) of the tables that say which image a row is."""

    block_rows: int
    config: TrainConfig
    number: int
    """Of the cache within the run, whose permutations it sets apart; see ``EpochOrder.stream``."""

    @property
    def digest(self) -> str:
        """sha256 (hex) that names the sequence of rows."""
        config = self.config
        settings = (config.order, config.order_seed, config.batch_size, config.partition)
        content = hashlib.sha256(repr((settings, self.block_rows)).encode() + self.rows.digest)
        if self.views is not None:
            content.update(np.ascontiguousarray(self.views.image, "<i8").tobytes())
            content.update(np.ascontiguousarray(self.views.turn, "<i2").tobytes())
        return content.hexdigest()

    @property
    def images(self) -> str:
        """sha256 (hex) of which images are learnt from: the order only knows their numbers."""
        return hashlib.sha256(self.index_digest.encode() + self.rows.digest).hexdigest()

    def order(self, epoch: int) -> EpochOrder:
        """The order of one epoch's rows."""
        rows = self.rows
        if self.views is not None:
            rows = RowSet(rows.to_array()[self.views.shown(epoch)])
        return EpochOrder(
            rows=rows,
            seed=self.config.order_seed,
            epoch=epoch,
            mode=self.config.order,
            block_rows=self.block_rows,
            stream=self.number,
        )

    def between(self, position: int, stop: int) -> Rows:
        """The rows (stop - position,) at these positions of all epochs laid end to end."""
        parts = []
        while position < stop:
            epoch, first = divmod(position, self.num_images)
            last = min(first + stop - position, self.num_images)
            parts.append(_order(self, epoch).between(first, last))
            position += last - first
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def teachers_of(self, rows: Rows) -> NDArray[np.int64]:
        """The number of the one teacher that each of ``rows`` (n,) is learnt from, with
        ``partition="one"``: a hash of its image's number."""
        images = rows if self.views is None else self.views.image[self.rows.rank(rows)]
        return (hashed(images, TEACHER_SEED) % np.uint64(self.num_teachers)).astype(np.int64)


@lru_cache(maxsize=4)
def _order(stream: RowStream, epoch: int) -> EpochOrder:
    return stream.order(epoch)


def make_stream(
    cache: Cache, config: TrainConfig, teachers: Sequence[str], *, without: Rows, number: int
) -> RowStream:
    """The stream of the cache's training rows, but for those of ``without``; see ``make_plan``."""
    rows = cache.rows(teachers, "train")
    if not rows.size:
        raise IncompleteCache(
            f"{cache.location} has no training row that every one of {', '.join(teachers)} "
            f"committed. Finish it with `phistill extract IMAGES --cache {cache.location}`."
        )
    if without.size:
        rows = rows[~np.isin(rows, without)]
    if config.labels or config.row_filter:
        index = cache.index(None if config.row_filter else _label_columns(cache))
        rows = rows[_filtered(index, config)[_lines(index, rows)]]
    if not rows.size:
        raise UsageError(
            f"the filters (labels, row_filter) leave no training row of {cache.location}."
        )
    views = None
    num_images = rows.size
    if len(cache.info.views) > 1:
        rows, views = _several_views(cache.index(["row", "id", "view"]), rows, config.max_rows)
        num_images = int(np.count_nonzero(views.turn == 0))
    elif config.max_rows:
        rows = rows[: config.max_rows]
        num_images = rows.size
    tables = " ".join(segment.index_sha256 for segment in cache.info.segments)
    return RowStream(
        rows=RowSet(rows),
        views=views,
        num_images=num_images,
        num_teachers=len(teachers),
        index_digest=hashlib.sha256(tables.encode()).hexdigest(),
        block_rows=cache.block_rows(teachers),
        config=config,
        number=number,
    )


def _label_columns(cache: Cache) -> list[str]:
    return [name for name in ("row", "label") if name in cache.index_columns()]


def _lines(index: pa.Table, rows: Rows) -> NDArray[np.int64]:
    """The line of the index that each of ``rows`` has."""
    return index["row"].to_numpy().searchsorted(rows)


def _filtered(index: Any, config: TrainConfig) -> NDArray[np.bool_]:
    """(lines,) True where the config's filters keep a line of the index."""
    keep = np.ones(index.num_rows, bool)
    if config.labels:
        if "label" not in index.column_names:
            raise UsageError(f"labels={config.labels}: the cache's index has no labels.")
        wanted = pa.array(config.labels, index["label"].type)
        keep &= pc.is_in(index["label"], value_set=wanted).to_numpy()
    if config.row_filter:
        chosen = np.asarray(plugins.load(config.row_filter, "row_filter")(index))
        if chosen.dtype != bool or chosen.shape != keep.shape:
            raise UsageError(
                f"row_filter={config.row_filter!r} returned {chosen.dtype} {chosen.shape}; "
                f"wanted bool {keep.shape}."
            )
        keep &= chosen
    return keep


def _several_views(index: Any, rows: Rows, max_images: int) -> tuple[Rows, Views]:
    """The views of ``rows``; of the first ``max_images`` images by their lowest row, if given."""
    of_lines = index["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    row_of_line = index["row"].to_numpy()
    first = np.empty(int(of_lines.max()) + 1, np.int64)
    first[of_lines[::-1]] = row_of_line[::-1]  # of equal numbers the last one written stays
    lines = row_of_line.searchsorted(rows)
    image, view = first[of_lines[lines]], index["view"].to_numpy()[lines]
    if max_images:
        numbers, lowest = np.unique(image, return_index=True)
        kept = np.isin(image, numbers[np.argsort(lowest)[:max_images]])
        rows, image, view = rows[kept], image[kept], view[kept]
    together = np.lexsort((view, image))
    starts = np.flatnonzero(np.diff(image[together], prepend=-1))
    counts = np.diff(np.append(starts, len(rows)))
    turn, count = np.empty(len(rows), np.int16), np.empty(len(rows), np.int16)
    turn[together] = np.arange(len(rows)) - np.repeat(starts, counts)
    count[together] = np.repeat(counts, counts)
    return rows, Views(image=image, turn=turn, count=count)
