"""The zarr metadata of a cache's groups and arrays.

zarr makes the documents (in memory), so that what we publish is what zarr would have written; the
values are encoded and decoded by ``shard`` and ``reader``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np

from phistill.errors import CorruptCache

from .compression import compressor
from .info import DTYPES, CacheInfo
from .json_document import canonical, decode, parse, with_digest

T = TypeVar("T")


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
        chunks=(info.shard_rows, *row_shape),
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
    return msgspec.json.format(canonical(document), indent=2)


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
