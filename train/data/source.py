"""The stored pixels and features of chosen rows: moves bytes and never decides their order."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phistill.cache import Split
from phistill.cache.codes import RowCodec
from phistill.cache.format import names
from phistill.cache.joined import JoinedCaches, JoinedReadAhead, JoinedReader
from phistill.cache.reader import MAX_BLOCKS
from phistill.cache.storage.local_files import LocalFiles
from phistill.compute.copies import host_memory
from phistill.errors import UsageError

from ..targets import Target
from .plan import RowPlan
from .stream import Rows

log = logging.getLogger(__name__)

PIXELS = "pixels"

SMALL_PARTS = (1, 2, 3)
"""Rows of batches whose targets must have the bits that they have in a large one."""


class Transform(Protocol):
    """How the stored values of a target (n, ...) become what is learnt, float32."""

    digest: bytes
    """Equal for transforms that give the same bits."""

    is_identity: bool

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def of_codes(self, codec: RowCodec) -> Transform:
        """The same of values that are stored as codes (n, bytes)."""


class Source:
    """The pixels and targets of chosen rows, from the cache's shards or from memory."""

    def __init__(self, caches: JoinedCaches, targets: Sequence[Target]) -> None:
        require_pixels(caches)
        self.caches, self.targets = caches, tuple(targets)
        self.readers: dict[str, JoinedReader] = {PIXELS: caches.reader(PIXELS, PIXELS)}
        """Of pixels and features, decoded where codes are stored."""
        self.unbiased: dict[str, JoinedReader] = {}
        """Of features to learn from and to measure errors by; see ``Cache.reader``."""
        self.codecs: dict[str, RowCodec] = {}
        """By target key, of targets whose rows are read and kept as codes (n, bytes): those that
        all caches store with one codec."""
        self._stored = dict(self.readers)
        for target in targets:
            teacher, kind = target.teacher, target.kind
            reader = self.readers[target.key] = caches.reader(teacher, kind)
            if _is_coded(caches, target):
                reader = caches.reader(teacher, kind, unbiased=True)
            self._stored[target.key] = self.unbiased[target.key] = reader
            if codec := caches.codec(teacher, kind):
                self.codecs[target.key] = codec
                self._stored[target.key] = caches.reader(teacher, names.codes(kind))
        self.normalised: dict[str, bytes] = {}
        """By target key, the digest of the transform that its values have been through."""
        self._resident: dict[str, NDArray[Any]] = {}
        self._resident_rows = np.empty(0, np.int64)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over everything that is read."""
        return sum(map(self._stored_bytes, self._stored))

    def normalised_row_bytes(self, keys: Collection[str]) -> int:
        """The same with these targets normalised."""
        wide = np.dtype(np.float32).itemsize
        normalised = sum(math.prod(self.readers[key].row_shape) * wide for key in keys)
        return normalised + sum(self._stored_bytes(key) for key in self._stored if key not in keys)

    def _stored_bytes(self, key: str) -> int:
        reader = self._stored[key]
        return math.prod(reader.row_shape) * reader.dtype.itemsize

    @property
    def is_resident(self) -> bool:
        return bool(self._resident)

    def keep_in_memory(
        self, rows: Rows, transforms: Mapping[str, Transform] | None = None, block: int = 1
    ) -> None:
        """Read ``rows`` (ascending) once; later reads are copies within memory.

        Targets with a transform are kept as it makes them, ``block`` rows at a time.
        """
        transforms = transforms or {}
        for key, reader in self._stored.items():
            if key not in transforms:
                self._resident[key] = reader.read(rows)
                continue
            shape = self.readers[key].row_shape
            kept = self._resident[key] = np.empty((rows.size, *shape), np.float32)
            for start in range(0, rows.size, block):
                stored = torch.from_numpy(reader.read(rows[start : start + block]))
                kept[start : start + block] = transforms[key](stored).numpy()
        self.normalised = {key: transform.digest for key, transform in transforms.items()}
        self._resident_rows = rows

    def read(self, key: str, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The stored values (n, ...) of ``rows``, codes of targets in ``codecs``; into ``out`` when
        given."""
        if not rows.size:  # a share of a batch may hold no row of a teacher
            return np.empty((0, *self._shape(key)), self._dtype(key)) if out is None else out
        if not self._resident:
            return self._stored[key].read(rows, out)
        places = np.searchsorted(self._resident_rows, rows)
        return np.take(self._resident[key], places, axis=0, out=out, mode="clip")

    def blocks_ahead(self, block_rows: Sequence[int]) -> JoinedReadAhead:
        """What asks for whole blocks of each cache before their rows are read."""
        return JoinedReadAhead(self.caches, list(self._stored.values()), block_rows)

    def buffers(self, num_rows: int, device: torch.device) -> dict[str, Tensor]:
        """Host memory for ``num_rows`` rows of everything, to be copied to a device."""
        return {
            key: host_memory(
                (num_rows, *self._shape(key)), getattr(torch, self._dtype(key).name), device
            )
            for key in self._stored
        }

    def _shape(self, key: str) -> tuple[int, ...]:
        return (self.readers if key in self.normalised else self._stored)[key].row_shape

    def _dtype(self, key: str) -> np.dtype[Any]:
        return np.dtype(np.float32) if key in self.normalised else self._stored[key].dtype


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Rows of one cache of a run, numbered as its source numbers them."""

    cache: str
    """Its name; empty where there is only one."""
    rows: Rows


def parts_of(
    caches: JoinedCaches, teachers: Sequence[str], split: Split, max_rows: int = 0
) -> list[Part]:
    """The rows of each cache that has any, at most ``max_rows`` of each (0: all)."""
    called = [cache.files.name for cache in caches.caches]
    if len(set(called)) < len(called):
        called = [cache.location for cache in caches.caches]
    parts = [
        Part(name if called[1:] else "", start + cache.rows(teachers, split))
        for name, start, cache in zip(called, caches.starts, caches.caches, strict=True)
    ]
    return [Part(part.cache, part.rows[: max_rows or None]) for part in parts if part.rows.size]


def require_pixels(caches: JoinedCaches) -> None:
    """UsageError for caches that hold features only."""
    if PIXELS not in caches.owners:
        raise UsageError(
            f"{caches.location} stores no pixels, so no student can learn from it. "
            "Extract with a pixel size."
        )


def open_source(
    caches: JoinedCaches,
    targets: Sequence[Target],
    plan: RowPlan,
    *,
    world: int = 1,
    transforms: Mapping[str, Transform] | None = None,
) -> Source:
    """The source of a run's batches: in memory when its rows fit into ``memory_bytes``, which the
    ``world`` processes of the run share.

    Where they fit as float32 too, targets with one of ``transforms`` are normalised once instead of
    in every epoch, unless the bits of a product would depend on the size of the batch.
    """
    source = Source(caches, targets)
    for target in targets:
        if target.key not in source.codecs and _is_coded(caches, target):
            log.debug(
                "%s: the caches do not store it with one codec, rows are decoded on the host",
                target.key,
            )
    transforms = {
        key: transform.of_codes(source.codecs[key]) if key in source.codecs else transform
        for key, transform in (transforms or {}).items()
    }
    memory_bytes = plan.config.memory_bytes // world
    num_bytes = plan.num_rows * source.row_bytes
    log.debug(
        "%s of rows, memory_bytes=%s: %s",
        *(f"{num_bytes:,} bytes", f"{memory_bytes:,}"),
        "read once, into memory" if num_bytes <= memory_bytes else "read again in every epoch",
    )
    if num_bytes <= memory_bytes:
        rows, block = plan.rows, max(1, plan.config.batch_size // world)
        chosen = _same_in_any_batch(source, rows[:block], transforms)
        if plan.num_rows * source.normalised_row_bytes(chosen) > memory_bytes:
            chosen = {}
        source.keep_in_memory(rows, chosen, block)
    elif text := _advice(source, plan):
        warnings.warn(text, stacklevel=2)
    return source


def _is_coded(caches: JoinedCaches, target: Target) -> bool:
    """Whether a cache stores it as codes."""
    return any(target.kind in cache.teacher(target.teacher).codecs for cache in caches.caches)


def _same_in_any_batch(
    source: Source, rows: Rows, transforms: Mapping[str, Transform]
) -> dict[str, Transform]:
    """The transforms that give each of ``rows`` the same bits alone, in small parts and together.

    They do where the product of a row is summed in an order that the number of rows does not
    change. Of a single vector it often is another: a matrix times a vector.
    """
    chosen = {}
    for key, transform in transforms.items():
        if transform.is_identity or not rows.size:
            continue
        stored = torch.from_numpy(source.read(key, rows))
        together = transform(stored)
        if all(
            torch.equal(torch.cat([transform(part) for part in stored.split(size)]), together)
            for size in SMALL_PARTS
        ):
            chosen[key] = transform
    return chosen


def _advice(source: Source, plan: RowPlan) -> str:
    """A sentence for runs on an object store that will be slow or need much memory."""
    caches = [cache for cache in source.caches.caches if not isinstance(cache.files, LocalFiles)]
    location = source.caches.location
    if not caches:
        return ""
    if plan.config.order != "block":
        return (
            f"{location} lies on an object store and order={plan.config.order!r} asks for single "
            f"rows: up to {plan.num_rows * len(source.readers):,} requests per epoch. Take --set "
            "order=block, which reads whole files, or copy it to a disk first with --stage FOLDER."
        )
    rows = sum(
        MAX_BLOCKS * stream.block_rows
        for cache, stream in zip(source.caches.caches, plan.streams, strict=True)
        if cache in caches
    )
    if not hasattr(os, "sysconf"):  # Windows does not say how much memory there is
        return ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if rows * source.row_bytes > memory / 2:
        return (
            f"order=block keeps up to {MAX_BLOCKS} blocks of every array of {location} in "
            f"memory, {rows * source.row_bytes / 2**30:,.0f} GiB of this machine's "
            f"{memory / 2**30:,.0f} GiB. Take fewer teachers, or copy it to a disk first with "
            "--stage FOLDER."
        )
    return ""
