"""The arrays of a cache: in which files their rows lie, and the zarr metadata that says so.

zarr makes the documents (in memory), so that what we publish is what zarr would have written; the
values are encoded and decoded by ``shard`` and ``reader``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache

from . import names
from .compression import compressor
from .info import DTYPES, CacheInfo
from .json_document import canonical, decode, encoded, parse, with_digest
from .shard import CRC_BYTES, index_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Where the rows of one array lie: row r in file r // file_rows, of which a shard has one or,
    where rows are large, a power of two."""

    owner: str
    kind: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file_rows: int
    """Rows of a file; the last of a segment may have fewer."""

    @classmethod
    def of(cls, info: CacheInfo, owner: str, kind: str, row_shape: tuple[int, ...]) -> Self:
        dtype = DTYPES[kind]
        rows = info.rows_per_file(math.prod(row_shape) * dtype.itemsize)
        return cls(owner, kind, row_shape, dtype, rows)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    def files(self, start: int, stop: int) -> range:
        """Numbers of the files that hold rows [start, stop)."""
        return range(start // self.file_rows, -(-stop // self.file_rows))

    def stored_bytes(self, num_rows: int) -> int:
        """Of so many rows from the start of a file on, uncompressed: values, checksums, indexes."""
        num_files = len(self.files(0, num_rows))
        return num_rows * (self.row_bytes + CRC_BYTES) + num_files * index_bytes(self.file_rows)

    def path(self, file: int) -> str:
        """Where a file lies below the root."""
        return names.array_file(self.owner, self.kind, file, 1 + len(self.row_shape))


class ShardFiles:
    """The files of the shards of one owner, by its ``layouts``."""

    def __init__(self, info: CacheInfo, layouts: Sequence[ArrayLayout]) -> None:
        self._info, self._layouts = info, tuple(layouts)

    def of(self, shard: int) -> dict[str, list[str]]:
        """Paths of a shard's files by kind, by ascending row."""
        rows = self._info.shard_range(shard)
        return {one.kind: [one.path(file) for file in one.files(*rows)] for one in self._layouts}

    def __call__(self, shard: int) -> list[str]:
        """The paths of a shard's files, ascending."""
        return sorted(path for paths in self.of(shard).values() for path in paths)

    def have(self, shards: NDArray[np.int64], num_files: NDArray[Any]) -> bool:
        """Whether those of ``shards`` (k,) that exist have so many files each, (k,)."""
        exists = np.isin(shards, self._info.shard_numbers)
        places = np.searchsorted(self._info.shard_numbers, shards[exists])
        sizes = self._info.shard_sizes[places]
        expected = sum((-(-sizes // one.file_rows) for one in self._layouts), np.zeros_like(sizes))
        return bool((expected == num_files[exists]).all())


def array_document(
    info: CacheInfo, kind: str, row_shape: tuple[int, ...], num_rows: int | None = None
) -> bytes:
    """zarr.json of an array (num_rows, *row_shape) with one row per inner chunk.

    ``num_rows`` are the cache's unless given. Inner codecs are bytes (little-endian), a compressor
    if there is one, and crc32c: without a checksum zarr returns flipped bits as data. Fill is NaN
    for floats and 0 for integers.
    """
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    dtype = DTYPES[kind]
    compressors = [compressor(info.compression)] if info.compression else []
    documents: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(documents)
    zarr.create_array(
        store,
        shape=(info.num_rows if num_rows is None else num_rows, *row_shape),
        dtype=dtype,
        chunks=(info.rows_per_file(math.prod(row_shape) * dtype.itemsize), *row_shape),
        serializer=ShardingCodec(
            chunk_shape=(1, *row_shape),
            codecs=[BytesCodec(endian="little"), *compressors, Crc32cCodec()],
            index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        ),
        filters=None,
        compressors=None,
        fill_value=np.nan if dtype.kind == "f" else 0,
        zarr_format=3,
    )
    return bytes(documents["zarr.json"].to_bytes())


def group_document(attributes: object = None) -> bytes:
    """zarr.json of a group; ``attributes``, a struct, go with their digest under ``phistill``."""
    content = {} if attributes is None else {"phistill": with_digest(attributes)}
    document = {"zarr_format": 3, "node_type": "group", "attributes": content}
    return msgspec.json.format(encoded(document), indent=2)


def group_attributes(data: bytes, cls: type[T], where: str) -> T:
    """The ``phistill`` attributes of a group's zarr.json, which are those of a ``cls``."""
    document = parse(data, where)
    attributes = document.get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict) or "phistill" not in attributes:
        raise CorruptCache(f"{where} is not a phistill cache: it has no 'phistill' attributes.")
    same_group(data, where)
    return decode(attributes["phistill"], cls, where)


def same_group(data: bytes, where: str) -> None:
    """Raise CorruptCache when a group's zarr.json holds anything but what we write."""
    document = parse(data, where)
    attributes = document.pop("attributes", None) if isinstance(document, dict) else None
    if (
        document != {"zarr_format": 3, "node_type": "group"}
        or not isinstance(attributes, dict)
        or set(attributes) - {"phistill"}
    ):
        raise CorruptCache(f"{where} is not a group that phistill wrote, or was edited.")


def same_array(data: bytes, expected: bytes, where: str, *, exactly: bool = False) -> None:
    """Raise CorruptCache when an array's zarr.json says something else than it must.

    Unless ``exactly``, the array may be longer than expected: a segment's arrays grow before the
    root names it.
    """
    stored, expected_document = parse(data, where), parse(expected, where)
    shape = stored.get("shape") if isinstance(stored, dict) else None
    if isinstance(shape, list) and shape and isinstance(shape[0], int):
        length, shape[0] = shape[0], min(shape[0], expected_document["shape"][0])
        if exactly and length > shape[0]:
            raise CorruptCache(
                f"{where} says {length:,} rows, the cache has {shape[0]:,}: it was edited, or "
                "adding rows was stopped. Add them again, or set it right with `extract --repair`."
            )
    if canonical(stored) != canonical(expected_document):
        raise CorruptCache(
            f"{where} does not describe the array that the cache's settings ask for: it was edited "
            "or belongs to another cache."
        )
