"""One shard as bytes: zarr v3 ``sharding_indexed`` with one row per inner chunk.

Layout (little-endian), n rows of b bytes in a shard made for ``shard_rows``:

    row 0 | crc32c | row 1 | crc32c | ... | index | crc32c

The index has ``shard_rows`` pairs (offset, nbytes) of uint64; a pair of 2^64 - 1 means that the
row is not stored. Inner codecs are ``[bytes, crc32c]``, index codecs the same, index at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from awscrt.checksums import crc32c
from numpy.typing import NDArray

from phistill.errors import CorruptCache

CRC_BYTES = 4
ENTRY_BYTES = 16
ABSENT = np.uint64(2**64 - 1)


def index_bytes(shard_rows: int) -> int:
    """Bytes of the encoded index, its checksum included."""
    return shard_rows * ENTRY_BYTES + CRC_BYTES


def encode_shard(rows: NDArray[np.generic], shard_rows: int) -> list[memoryview]:
    """The bytes zarr would write for ``rows`` (n, ...), n <= shard_rows, as buffers in file order.

    n * (b + 4) + shard_rows * 16 + 4 bytes in all: each row as it lies in ``rows``, its checksum
    after it, the index last. A shard is as large as a teacher's batch, so it is not copied.
    """
    num_rows = rows.shape[0]
    if not 0 < num_rows <= shard_rows:
        raise ValueError(f"{num_rows} rows do not fit a shard of {shard_rows}.")
    little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    flat = little.reshape(num_rows, -1).view(np.uint8)  # (n, b)
    buffers: list[memoryview] = []
    for row in flat:
        buffers += [row.data, _checksum(row)]
    return [*buffers, memoryview(encode_index(num_rows, shard_rows, flat.shape[1]))]


@lru_cache(maxsize=64)  # whole shards of an array have one; the last of a segment another
def encode_index(num_rows: int, shard_rows: int, row_bytes: int) -> bytes:
    """The index with its checksum, ``index_bytes(shard_rows)``: the rows lie one after another, so
    it says nothing that these three numbers do not."""
    stride = row_bytes + CRC_BYTES
    entries = np.full((shard_rows, 2), ABSENT, dtype="<u8")
    entries[:num_rows, 0] = np.arange(num_rows, dtype=np.uint64) * np.uint64(stride)
    entries[:num_rows, 1] = stride
    index = entries.view(np.uint8).reshape(-1)
    return bytes(index.data) + bytes(_checksum(index))


def _checksum(data: NDArray[np.uint8]) -> memoryview:
    """crc32c of ``data`` (b,) as its four little-endian bytes."""
    return memoryview(crc32c(data).to_bytes(CRC_BYTES, "little"))


def decode_rows(
    tail: NDArray[np.uint8],
    shard_rows: int,
    file_bytes: int,
    row_bytes: int,
    where: str,
) -> NDArray[np.int64]:
    """Offsets (shard_rows,) of the rows, -1 where a row is not stored.

    ``tail`` is the last ``index_bytes(shard_rows)`` bytes of a file of ``file_bytes``. Raises
    CorruptCache naming ``where`` when the checksum is wrong or an entry points outside the file.
    """
    if tail.size != index_bytes(shard_rows):
        raise CorruptCache(f"{where} has {file_bytes:,} bytes, too few for its index.")
    stored = int(tail[-CRC_BYTES:].view("<u4")[0])
    if crc32c(tail[:-CRC_BYTES]) != stored:
        raise CorruptCache(f"{where}: the shard index does not match its checksum.")
    entries = tail[:-CRC_BYTES].view("<u8").reshape(shard_rows, 2)
    present = entries[:, 0] != ABSENT
    end = file_bytes - index_bytes(shard_rows)
    bad = present & (
        (entries[:, 1] != row_bytes + CRC_BYTES)
        | (entries[:, 0] > np.uint64(max(end - row_bytes - CRC_BYTES, 0)))
    )
    if bad.any():
        raise CorruptCache(f"{where}: the shard index points outside the file.")
    return np.where(present, entries[:, 0], np.uint64(0)).astype(np.int64) - (~present).astype(
        np.int64
    )


def matches(row: NDArray[np.uint8], checksum: int) -> bool:
    """Whether a row's bytes (b,) have this crc32c."""
    return bool(crc32c(row) == checksum)


def sha256_of(buffers: Sequence[memoryview]) -> str:
    """sha256 (hex) of the buffers one after another."""
    total = hashlib.sha256()
    for buffer in buffers:
        total.update(buffer)
    return total.hexdigest()
