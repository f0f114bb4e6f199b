"""The endless stream of one cache's training rows: one permutation of its images after the other.

None of its images comes again before all have come. Nothing here reads features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phistill import plugins
from phistill.cache import Cache, order
from phistill.errors import IncompleteCache, UsageError

from ..config import TrainConfig

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowStream:
    """The training rows and the order they come in.

    rows (n,) are all eligible rows, ascending. Image i owns ``views[starts[i]:][:counts[i]]``:
    the places in ``rows`` of its stored views.
    """

    rows: Rows
    views: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    phase: NDArray[np.uint64]
    """Per image, a hash of its id: which view the first epoch takes."""

    teacher_slot: NDArray[np.int64] | None
    """Per entry of ``rows``, the number of the one teacher it is learnt from; None: from all."""

    images: str
    """sha256 (hex) of the ids of ``rows``: the digest of the order only knows their numbers."""

    shard_rows: int
    config: TrainConfig
    number: int
    """Of the cache within the run, whose permutations it sets apart; see ``order.epoch_rows``."""

    @property
    def num_images(self) -> int:
        """Rows of one epoch: one view of each image."""
        return len(self.starts)

    @property
    def digest(self) -> str:
        """sha256 (hex) that names the sequence of rows."""
        config = self.config
        settings = (config.order, config.order_seed, config.batch_size, config.partition)
        content = hashlib.sha256(repr(settings).encode())
        for array in (self.rows, self.views, self.starts):
            content.update(np.ascontiguousarray(array, "<i8").tobytes())
        return content.hexdigest()

    def epoch(self, epoch: int) -> Rows:
        """The rows (num_images,) of one epoch: view (epoch + hash(id)) mod K of each image."""
        shift = (self.phase + np.uint64(epoch)) % self.counts.astype(np.uint64)
        chosen = np.sort(self.rows[self.views[self.starts + shift.astype(np.int64)]])
        return order.epoch_rows(
            chosen,
            seed=self.config.order_seed,
            epoch=epoch,
            mode=self.config.order,
            shard_rows=self.shard_rows,
            stream=self.number,
        )

    def between(self, position: int, stop: int) -> Rows:
        """The rows (stop - position,) at these positions of all epochs laid end to end."""
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self.num_images)
            taken = _epoch(self, epoch)[offset : offset + stop - position]
            parts.append(taken)
            position += len(taken)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=4)
def _epoch(stream: RowStream, epoch: int) -> Rows:
    return stream.epoch(epoch)


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
    index = cache.index()
    line = np.searchsorted(index["row"].to_numpy(), rows)
    keep = _filtered(index, config)[line]
    keep &= ~np.isin(rows, without)
    rows, line = rows[keep], line[keep]
    ids = np.array(index["id"].to_pylist(), dtype=object)[line]
    view = index["view"].to_numpy()[line]
    rows, ids, view = _first_images(rows, ids, view, config.max_rows)
    if rows.size == 0:
        raise UsageError(
            f"the filters (labels, row_filter) leave no training row of {cache.location}."
        )
    names, image = np.unique(ids.astype(str), return_inverse=True)
    views = np.lexsort((view, image))
    starts = np.searchsorted(image[views], np.arange(len(names)))
    counts = np.diff(np.append(starts, len(rows)))
    slot = None
    if config.partition == "one":
        slot = _hashes(names, b"teacher")[image].astype(np.int64) % len(teachers)
    return RowStream(
        rows=rows,
        views=views.astype(np.int64),
        starts=starts.astype(np.int64),
        counts=counts.astype(np.int64),
        phase=_hashes(names, b"view") if counts.max() > 1 else np.zeros(len(names), np.uint64),
        teacher_slot=slot,
        images=hashlib.sha256("\0".join(ids.tolist()).encode()).hexdigest(),
        shard_rows=cache.info.shard_rows,
        config=config,
        number=number,
    )


def _filtered(index: Any, config: TrainConfig) -> NDArray[np.bool_]:
    """(lines,) True where the config's filters keep a line of the index."""
    keep = np.ones(index.num_rows, bool)
    if config.labels:
        if "label" not in index.column_names:
            raise UsageError(f"labels={config.labels}: the cache's index has no labels.")
        keep &= np.isin(np.array(index["label"].to_pylist(), dtype=object), list(config.labels))
    if config.row_filter:
        chosen = np.asarray(plugins.load(config.row_filter, "row_filter")(index))
        if chosen.dtype != bool or chosen.shape != keep.shape:
            raise UsageError(
                f"row_filter={config.row_filter!r} returned {chosen.dtype} {chosen.shape}; "
                f"wanted bool {keep.shape}."
            )
        keep &= chosen
    return keep


def _first_images(
    rows: Rows, ids: NDArray[Any], view: NDArray[Any], max_rows: int
) -> tuple[Rows, NDArray[Any], NDArray[Any]]:
    """Only the first ``max_rows`` images by their lowest row, with all their views."""
    if not max_rows:
        return rows, ids, view
    wanted: dict[str, None] = {}
    for name in ids:
        if len(wanted) == max_rows:
            break
        wanted.setdefault(name)
    keep = np.array([name in wanted for name in ids], bool)
    return rows[keep], ids[keep], view[keep]


def _hashes(names: NDArray[Any], purpose: bytes) -> NDArray[np.uint64]:
    """64 bits per name, independent between purposes."""
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(name.encode(), digest_size=8, person=purpose).digest(), "little"
            )
            >> 1
            for name in names
        ],
        dtype=np.uint64,
    )
