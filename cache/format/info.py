"""What a cache says of itself: frozen structs, decoded from JSON with their types checked.

``CacheInfo`` is the root's attributes, ``TeacherInfo`` a teacher's. Both are valid by construction
and refuse unknown keys, so that a file of a later format is refused instead of half understood.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from phistill.errors import CorruptCache, UsageError

from . import names
from .json_document import is_sha256

FORMAT = 1
"""Version of the layout in docs/format.md."""

MAX_SHARD_ROWS = 2**16
MAX_ROW_BYTES = 2**31
"""An array that claims more than this per row is refused before anything is allocated."""

MAX_FILE_BYTES = 2**40

MAX_LICENCE_LENGTH = 200

MAX_PACK_SHARDS, MAX_PACK_ROWS = 2**14, 2**22
"""A pack holds so many shards and rows at most: what is made and read as one file."""

MAX_ROWS = 2**40
"""A cache that claims more rows is refused: a byte per row is held while rows are chosen."""

DTYPES: dict[str, np.dtype[Any]] = {
    names.PIXELS: np.dtype("uint8"),
    "patches": np.dtype("float16"),
    "summary": np.dtype("float32"),
    "registers": np.dtype("float16"),
    **{names.codes(kind): np.dtype("uint8") for kind in names.KINDS},
}
"""Of each array, as it is stored."""


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that were added together. Starts at a shard boundary, padded to whole shards."""

    start: int
    """First row; a multiple of shard_rows."""
    num_rows: int
    """Rows that exist; the padding after them does not."""
    index_sha256: str
    """Of the segment's parquet table."""


IMPORTED = "imported"
"""The ``source`` in the identity of a teacher whose features something else computed."""

FILE_BYTES = 2**26
"""Values in one file at most: some tens of megabytes are read, hashed and sent at full speed, and
a file that is being filled takes no more memory."""

FIXED = (
    *("seed", "shard_rows", "file_bytes", "holdout", "pixel_size", "views", "decode"),
    "compression",
)
"""Settings that are equal in two caches of which one takes in rows of the other."""


class CacheInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Settings that all shards of a cache share."""

    seed: int
    """Of the row permutation, the split and every view."""
    shard_rows: int
    """Rows per shard, a power of two: the unit of commit."""
    holdout: float
    """Fraction of images held out, of those that come without a split of their own."""
    pixel_size: int
    """Side of the stored student pixels; 0 when none are stored."""
    views: tuple[dict[str, Any], ...]
    """One per stored view of an image, as the pipeline describes them."""
    decode: dict[str, Any]
    """How an image becomes RGB, as the pipeline describes it."""
    file_bytes: int = FILE_BYTES
    """Bytes of values in one file at most, but for a row that is larger alone."""
    compression: str = ""
    """Of every array, as ``compression`` describes it; empty for none."""
    segments: tuple[Segment, ...] = ()
    teachers: tuple[str, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    """One per listing of images that rows came from, as the pipeline describes it."""
    removed: tuple[tuple[int, int], ...] = ()
    """Ranges [start, stop) of rows taken down: stored, but never given out again."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise CorruptCache(
                f"the cache has format {self.format}; this phistill reads format {FORMAT}."
            )
        rows = self.shard_rows
        if not 0 < rows <= MAX_SHARD_ROWS or rows & (rows - 1):
            raise UsageError(
                f"shard_rows={rows} must be a power of two, at most {MAX_SHARD_ROWS:,}."
            )
        if not 0 < self.file_bytes <= MAX_FILE_BYTES:
            raise UsageError(
                f"file_bytes={self.file_bytes} must be between 1 and {MAX_FILE_BYTES:,}."
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={self.seed} must be between 0 and 2^63 - 1.")
        if not 0.0 <= self.holdout < 1.0:
            raise UsageError(f"holdout={self.holdout} must be at least 0 and below 1.")
        if not 0 <= self.pixel_size <= 8192:
            raise UsageError(f"pixel_size={self.pixel_size} must be between 0 and 8192.")
        if not self.views:
            raise UsageError("a cache needs at least one view.")
        names.refuse_one_folder(self.teachers)
        end = 0
        for segment in self.segments:
            if segment.start < end or segment.start % rows or segment.num_rows < 1:
                raise CorruptCache(f"{segment} does not follow the rows before it.")
            end = segment.start + segment.num_rows
        if end > MAX_ROWS:
            raise CorruptCache(f"the cache claims {end:,} rows; at most {MAX_ROWS:,} are possible.")
        if any(not 0 <= start <= stop for start, stop in self.removed):
            raise CorruptCache(f"removed={self.removed} are not ranges of rows.")

    @property
    def num_rows(self) -> int:
        """Length of every array: the end of the last segment, padding between segments counted."""
        return self.segments[-1].start + self.segments[-1].num_rows if self.segments else 0

    @property
    def num_real_rows(self) -> int:
        """Rows that exist, without the padding."""
        return sum(segment.num_rows for segment in self.segments)

    @property
    def next_row(self) -> int:
        """First row of the next segment: the end of the last, rounded up to a whole shard."""
        return self.num_shards * self.shard_rows

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_rows / self.shard_rows)

    def rows_per_file(self, row_bytes: int) -> int:
        """Rows in a file of an array: the largest power of two within ``file_bytes`` and a shard,
        at least one."""
        rows = max(1, min(self.shard_rows, self.file_bytes // max(row_bytes, 1)))
        return 1 << (rows.bit_length() - 1)

    def segment_of(self, row: int) -> int | None:
        """Number of the segment that a row belongs to; None for padding and beyond the end."""
        number = bisect_right(self._starts, row) - 1
        if number < 0 or row >= self._starts[number] + self.segments[number].num_rows:
            return None
        return number

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First row and row after the last that really exist in a shard."""
        start = shard * self.shard_rows
        number = self.segment_of(start)
        if number is None:
            raise UsageError(
                f"shard {shard} does not exist; the cache has {self.num_shards} shards."
            )
        segment = self.segments[number]
        return start, min(start + self.shard_rows, segment.start + segment.num_rows)

    def shards(self) -> list[int]:
        """Every shard that holds rows."""
        numbers: list[int] = self.shard_numbers.tolist()
        return numbers

    def is_removed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of ``rows`` (n,) was taken down."""
        ranges = np.array(sorted(self.removed), np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(ranges[:, 1])
        before = np.searchsorted(ranges[:, 0], rows, side="right") - 1
        return (before >= 0) & (rows < np.append(ends, 0)[before])

    @property
    def pack_shards(self) -> int:
        """Shards of a pack, a power of two: no more than its facts of about 240 MB allow."""
        return min(MAX_PACK_SHARDS, max(1, MAX_PACK_ROWS // self.shard_rows))

    def pack_range(self, number: int) -> range:
        """The shards that a pack may have, by its number; some may not exist."""
        return range(number * self.pack_shards, (number + 1) * self.pack_shards)

    def ranges(self) -> dict[int, list[int]]:
        """The shards of each pack's range, by its number."""
        numbers = self.shard_numbers // self.pack_shards
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        parts = np.split(self.shard_numbers, starts[1:]) if len(starts) else []
        return {int(part[0]) // self.pack_shards: part.tolist() for part in parts}

    @cached_property
    def shard_numbers(self) -> NDArray[np.int64]:
        """Every shard that holds rows, (s,), ascending."""
        firsts = np.array(self._starts, np.int64) // self.shard_rows
        counts = -(-self._num_rows_of_segments // self.shard_rows)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(firsts, counts) + inside

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Rows of each of ``shard_numbers``, (s,)."""
        starts = self.shard_numbers * self.shard_rows
        ends = np.array(self._starts, np.int64) + self._num_rows_of_segments
        number = np.searchsorted(np.array(self._starts, np.int64), starts, side="right") - 1
        return np.minimum(self.shard_rows, ends[number] - starts)

    @cached_property
    def real_rows(self) -> NDArray[np.bool_]:
        """(num_rows,) False for the padding between segments."""
        real = np.zeros(self.num_rows, bool)
        for segment in self.segments:
            real[segment.start : segment.start + segment.num_rows] = True
        return real

    @cached_property
    def _num_rows_of_segments(self) -> NDArray[np.int64]:
        return np.array([segment.num_rows for segment in self.segments], np.int64)

    @cached_property
    def _starts(self) -> list[int]:
        return [segment.start for segment in self.segments]


class StoredCodec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The codec that one kind of a teacher's features is stored with."""

    sha256: str
    """Of its file."""
    budget: int
    """Bytes of a row that it was allowed."""
    num_bytes: int
    """Of a row."""
    lost_share: float
    """Of the variance, lost by pilot rows that it was not fitted on."""


class TeacherInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a teacher is and which arrays it has."""

    name: str
    grid: tuple[int, int]
    """(h, w) of the patch tokens; row-major, T = h * w."""
    widths: dict[str, int]
    """Vector width per kind: patches C, summary D, registers C."""
    num_registers: int = 0
    rows_per_forward: int = 1
    """Rows in one forward pass. Fixed with the teacher, because it can change the last bit."""
    spec: str = ""
    """The text that builds the teacher again, ``SOURCE:MODEL?options``. Not part of what it is."""
    licence: str = ""
    """Of the weights, as their source states it; empty where it does not. No part of what it
    is."""
    identity: dict[str, Any] = msgspec.field(default_factory=dict)
    """What must be equal for features to be comparable: source, model, revision, weights_sha256,
    preprocessing, layer, dtype, autocast."""

    codecs: dict[str, StoredCodec] = msgspec.field(default_factory=dict)
    """By kind, for those that are stored as codes. No part of what the teacher is."""

    def __post_init__(self) -> None:
        names.check_teacher_name(self.name)
        unknown = set(self.widths) - set(names.KINDS)
        if unknown or "patches" not in self.widths:
            raise UsageError(
                f"teacher {self.name}: kinds {sorted(self.widths)} must hold 'patches' "
                f"and nothing but {list(names.KINDS)}."
            )
        sizes = [*self.grid, *self.widths.values(), self.rows_per_forward]
        if min(sizes) < 1 or self.num_registers < 0:
            raise UsageError(f"teacher {self.name}: sizes must be positive: {self}.")
        if len(self.licence) > MAX_LICENCE_LENGTH:
            raise UsageError(
                f"teacher {self.name}: the licence must be a name of at most {MAX_LICENCE_LENGTH} "
                "letters, for example apache-2.0."
            )
        for kind, codec in self.codecs.items():
            if (
                kind not in self.widths
                or not is_sha256(codec.sha256)
                or not 0 < codec.num_bytes <= MAX_ROW_BYTES
                or not 0 <= codec.lost_share < math.inf
            ):
                raise UsageError(f"teacher {self.name}: there is no such codec of {kind}: {codec}.")
        for kind in self.kinds:
            if math.prod(self.row_shape(kind)) * DTYPES[kind].itemsize > MAX_ROW_BYTES:
                raise UsageError(f"teacher {self.name}: a row of {kind} exceeds 2 GiB.")

    def shown(self) -> dict[str, str]:
        """The line of a notebook's table, by column."""
        widths = ", ".join(f"{kind} {width}" for kind, width in self.widths.items())
        grid = " x ".join(map(str, self.grid))
        licence = self.licence or "unknown"
        return {"teacher": self.name, "grid": grid, "widths": widths, "licence": licence}

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON values."""
        return dict(msgspec.to_builtins(self))

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in names.KINDS if kind in self.widths)

    @property
    def is_imported(self) -> bool:
        """Whether its features came from elsewhere, so that nobody here can compute them."""
        return bool(self.identity.get("source") == IMPORTED)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def width(self, kind: str) -> int:
        """Vector width of a kind; UsageError lists what the teacher has."""
        if kind not in self.widths:
            raise UsageError(f"teacher {self.name} has no {kind}; it has {', '.join(self.kinds)}.")
        return self.widths[kind]

    def row_shape(self, kind: str) -> tuple[int, ...]:
        """Shape of one row: patches (T, C), summary (D,), registers (G, C)."""
        width = self.width(kind)
        return {
            "patches": (self.num_tokens, width),
            "summary": (width,),
            "registers": (self.num_registers, width),
        }[kind]

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Row shape of each array that is stored: of a kind, or of its codes."""
        return {
            self.array_of(kind): (self.codecs[kind].num_bytes,)
            if kind in self.codecs
            else self.row_shape(kind)
            for kind in self.kinds
        }

    def array_of(self, kind: str) -> str:
        """The array that a kind is stored in."""
        return names.codes(kind) if kind in self.codecs else kind

    @property
    def array_bytes(self) -> dict[str, int]:
        """Bytes of one row of each array."""
        return {n: math.prod(shape) * DTYPES[n].itemsize for n, shape in self.arrays.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays."""
        return sum(self.array_bytes.values())

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identity with the shapes that follow from it."""
        return {
            **self.identity,
            "grid": list(self.grid),
            "widths": dict(self.widths),
            "num_registers": self.num_registers,
        }

    def differences(self, fingerprint: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Field to (value here, value there) where another teacher's fingerprint differs.

        Empty when it is the same teacher: features of the two may stand under one name.
        """
        ours = self.fingerprint
        return {
            key: (ours.get(key), fingerprint.get(key))
            for key in sorted({*ours, *fingerprint})
            if ours.get(key) != fingerprint.get(key)
        }
