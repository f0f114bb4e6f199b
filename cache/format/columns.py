"""Named columns in one file that can be mapped: each is checked when it is first used, in a copy.

The file is a safetensors file: the length of the header (uint64), the header as JSON, the columns
one behind the other, wide types first so that each is aligned, and then small ones, which are asked
for more often. The metadata carries the sha256 of every column, and that of the header itself,
taken while 64 zeros stood in its place; so there is no byte that could change unseen. A mapped byte
may change after it was compared, so what is believed is in memory that no file stands behind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache

TYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2**30
"""Of a file that is read whole: a pack of 16,384 shards has about 250 MB."""
_BLANK = "0" * 64
_NO_HEADER = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading a header raises that is none."""


class Bytes(Protocol):
    """A file's content, of which parts can be had."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


def encode(columns: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> list[memoryview]:
    """The file in pieces; the same columns and facts give the same bytes."""
    wide_first = sorted(
        columns, key=lambda name: (-columns[name].dtype.itemsize, columns[name].nbytes, name)
    )
    header: dict[str, Any] = {}
    buffers: list[memoryview] = []
    position = 0
    for name in wide_first:
        code = next(code for code, dtype in TYPES.items() if dtype == columns[name].dtype)
        values = np.ascontiguousarray(columns[name], TYPES[code])
        stop = position + values.nbytes
        header[name] = {
            "dtype": code,
            "shape": list(values.shape),
            "data_offsets": [position, stop],
        }
        buffers.append(values.reshape(-1).view(np.uint8).data)
        position = stop
    digests = {
        name: hashlib.sha256(buffer).hexdigest()
        for name, buffer in zip(wide_first, buffers, strict=True)
    }
    about = json.dumps({"facts": facts, "columns": digests, "sha256": _BLANK}, sort_keys=True)
    header["__metadata__"] = {"phistill": about}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    place = text.rindex(_BLANK.encode())
    digest = hashlib.sha256(text).hexdigest().encode()
    text = text[:place] + digest + text[place + len(digest) :]
    length = len(text).to_bytes(LENGTH_BYTES, "little")
    return [memoryview(length + text), *buffers]


class Columns(Mapping[str, NDArray[Any]]):
    """The columns of an encoded file. CorruptCache naming ``where`` for what was changed, with
    ``advice``."""

    def __init__(self, content: Bytes, where: str, advice: str = "") -> None:
        self.where, self._content, self._advice = where, content, advice
        try:
            self._read_header()
        except _NO_HEADER as error:
            raise self.damaged(f"its header was changed ({error})") from error
        self._checked: dict[str, NDArray[Any]] = {}
        self._parts: dict[str, NDArray[Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column, copied and compared with its digest the first time, and kept."""
        if name not in self._checked:
            self._checked[name] = self.copied(name)
        return self._checked[name]

    def copied(self, name: str) -> NDArray[Any]:
        """A copy of a column that matches its digest."""
        values = np.array(self.unchecked(name))
        content = values.reshape(-1).view(np.uint8).data
        if hashlib.sha256(content).hexdigest() != self._digests[name]:
            raise self.damaged(f"{name} does not match its digest, so it was changed")
        return values

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each column, as the header says: none is read."""
        return {name: shape for name, (_, shape, _, _) in self._layout.items()}

    def unchecked(self, name: str) -> NDArray[Any]:
        """A column as it is in the file now, for who has other means to tell what of it is whole;
        fetched once from a store."""
        if name not in self._layout:
            raise self.damaged(f"it has no column {name!r}")
        if name not in self._parts:
            dtype, shape, start, stop = self._layout[name]
            part = np.asarray(self._content[self._start + start : self._start + stop])
            self._parts[name] = part.view(dtype).reshape(shape)
        return self._parts[name]

    def require(self, kinds: Mapping[str, tuple[str, int]]) -> None:
        """CorruptCache unless these are the columns, by name their types and dimensions."""
        have = {
            name: (dtype.str, len(shape)) for name, (dtype, shape, _, _) in self._layout.items()
        }
        wanted = {name: (np.dtype(dtype).str, dims) for name, (dtype, dims) in kinds.items()}
        if have != wanted:
            raise self.damaged("it is a pack of something else")

    def damaged(self, what: str) -> CorruptCache:
        """The error that says what is wrong with the file."""
        return CorruptCache(f"{self.where}: {what}. {self._advice}".rstrip())

    def _read_header(self) -> None:
        size = len(self._content)
        length = int.from_bytes(bytes(self._content[:LENGTH_BYTES]), "little")
        self._start = LENGTH_BYTES + length
        if not 0 < length <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise ValueError(f"{length:,} bytes in a file of {size:,}")
        text = bytes(self._content[LENGTH_BYTES : self._start])
        header = json.loads(text)
        about = json.loads(header.pop("__metadata__")["phistill"])
        digest = str(about["sha256"]).encode()
        place = text.rindex(digest)
        blank = text[:place] + _BLANK.encode() + text[place + len(digest) :]
        if len(digest) != len(_BLANK) or hashlib.sha256(blank).hexdigest().encode() != digest:
            raise ValueError("its digest differs")
        self.facts: dict[str, Any] = about["facts"]
        self._digests: dict[str, str] = about["columns"]
        self._layout: dict[str, tuple[np.dtype[Any], tuple[int, ...], int, int]] = {}
        end = 0
        for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = TYPES[one["dtype"]], tuple(map(int, one["shape"]))
            start, stop = map(int, one["data_offsets"])
            count = int(np.prod(shape, dtype=object))
            np.broadcast_to(dtype.type(0), shape)  # ValueError where no array has such a shape
            if start != end or stop - start != count * dtype.itemsize:
                raise ValueError(f"{name} is not where it must be")
            self._layout[name], end = (dtype, shape, start, stop), stop
        if set(self._digests) != set(self._layout) or self._start + end != size:
            raise ValueError(f"the columns take {end:,} bytes of {size - self._start:,}")


def ascend_within(shards: NDArray[np.int64], within: range) -> bool:
    """Whether ``shards`` ascend and lie within a range."""
    ascend = bool((np.diff(shards) > 0).all())
    return ascend and (not len(shards) or (int(shards[0]) in within and int(shards[-1]) in within))
