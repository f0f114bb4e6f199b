"""Compressed arrays, by option: zarr encodes and decodes them.

``compression`` is ``zstd:LEVEL`` (1 to 22), ``gzip:LEVEL`` (1 to 9) or ``blosc:CNAME:LEVEL`` (lz4,
lz4hc, zstd, zlib, blosclz; 1 to 9; bit shuffle), and empty for none. The default is none: float16
features hardly shrink (0.92 with zstd) and must be decoded row by row instead of read straight into
the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phistill.errors import UsageError

if TYPE_CHECKING:
    from zarr.abc.codec import BytesBytesCodec

BLOSC_NAMES = ("lz4", "lz4hc", "zstd", "zlib", "blosclz")


def compressor(compression: str) -> BytesBytesCodec:
    """The zarr codec of a non-empty ``compression``; UsageError shows the forms."""
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    kind, *rest = compression.split(":")
    try:
        if kind == "zstd" and 1 <= int(rest[-1]) <= 22 and len(rest) == 1:
            return ZstdCodec(level=int(rest[0]))
        if kind == "gzip" and 1 <= int(rest[-1]) <= 9 and len(rest) == 1:
            return GzipCodec(level=int(rest[0]))
        if kind == "blosc" and rest[0] in BLOSC_NAMES and 1 <= int(rest[1]) <= 9 and len(rest) == 2:
            name: Any = rest[0]
            return BloscCodec(cname=name, clevel=int(rest[1]), shuffle="bitshuffle", typesize=2)
    except (ValueError, IndexError):
        pass
    raise UsageError(
        f"compression={compression!r} is not known; write zstd:3, gzip:5 or blosc:zstd:5 "
        f"(blosc with {', '.join(BLOSC_NAMES)})."
    )


def encode_compressed(rows: NDArray[Any], document: bytes) -> NDArray[np.uint8]:
    """The bytes of a shard holding ``rows`` (n, ...) of the array that ``document`` describes."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    content = np.frombuffer(document, np.uint8)
    prototype = default_buffer_prototype()
    files: dict[str, Any] = {"zarr.json": prototype.buffer.from_array_like(content)}
    store = zarr.storage.MemoryStore(files)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array: Any = zarr.open_array(store, mode="r+")
        array[: rows.shape[0]] = rows
    key = "c/0" + "/0" * (rows.ndim - 1)
    return np.frombuffer(files[key].to_bytes(), np.uint8)
