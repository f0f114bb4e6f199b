"""One shard of one owner on its way into the cache, file by file as its rows come.

A shard of a large teacher is more than a process should hold, so a file is written when its rows
are there and let go. Nobody believes any of them before the commit record, which comes last: a
writer that is killed between two files leaves a shard that is missing.

b rows at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes.codec import RowCodec
from .format import names
from .format.arrays import ArrayLayout, array_document
from .format.compression import encode_compressed
from .format.info import CacheInfo
from .format.shard import encode_shard, sha256_of
from .storage.files import Files


@dataclass(frozen=True, eq=False, slots=True)
class FullFile:
    """A file whose rows are all there: ``values`` (n, *row_shape)."""

    layout: ArrayLayout
    number: int
    values: NDArray[Any]

    @property
    def path(self) -> str:
        return self.layout.path(self.number)


@dataclass(frozen=True, eq=False, slots=True)
class StoredBlock:
    """Rows as they are stored: arrays (b, *row_shape), features coded where codes are."""

    arrays: Mapping[str, NDArray[Any]]
    lost: Mapping[str, tuple[float, float]]
    """Squares that codes lose and that there were, by array."""
    rejected: Collection[int]


class ShardWriter:
    """Takes the rows of a shard in their order; ``add`` in one thread, ``code`` and ``write`` in
    any."""

    def __init__(
        self,
        files: Files,
        info: CacheInfo,
        owner: str,
        shard: int,
        layouts: Mapping[str, ArrayLayout],
        codecs: Mapping[str, RowCodec],
    ) -> None:
        self.owner, self.shard = owner, shard
        self.start, self.stop = info.shard_range(shard)
        self.written: dict[str, tuple[int, str]] = {}
        """Bytes and sha256 of each file that is durable, by path."""
        self._files, self._info, self._layouts, self._codecs = files, info, layouts, codecs
        self._lost: dict[str, tuple[float, float]] = {}
        """Squares that codes lose and that there were, by array."""
        self._next = self.start
        self._filling: dict[str, NDArray[Any]] = {}

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def is_coding(self) -> bool:
        """Whether features are coded here, which is worth a thread of its own."""
        return bool(self._codecs)

    @property
    def is_full(self) -> bool:
        """Whether every row was added."""
        return self._next == self.stop

    @property
    def lost_shares(self) -> dict[str, float]:
        """The share of the variance that the codes made here lose, by array."""
        return {name: lost / total if total else 0.0 for name, (lost, total) in self._lost.items()}

    def add(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        rejected: Collection[int] = (),
        copy: bool = True,
    ) -> list[FullFile]:
        """The next b rows of every array, (b, *row_shape) each; gives the files that are full now,
        for ``write``. Features of a kind that is stored as codes are coded here.

        Of rows that are ``rejected``, by their place among the b, NaN or 0 is stored. Without
        ``copy`` rows are stored as they are, and a file may be made of the given memory, which then
        nobody may change.
        """
        return self.add_block(self.code(arrays, rejected), copy=copy)

    def code(self, arrays: Mapping[str, NDArray[Any]], rejected: Collection[int]) -> StoredBlock:
        """What ``add_block`` takes, of what ``add`` takes."""
        coded, squares = dict(arrays), {}
        for kind, codec in self._codecs.items():
            if kind not in coded:
                continue
            features, name = coded.pop(kind), names.codes(kind)
            # A row that was taken down has NaN for what may not be copied.
            accepted = np.isfinite(features.reshape(len(features), -1)[:, 0])
            accepted[list(rejected)] = False
            found = codec.measured(features if accepted.all() else features[accepted])
            coded[name] = np.zeros((len(features), codec.num_bytes), np.uint8)
            coded[name][accepted] = found.codes
            squares[name] = found.lost, found.total
        return StoredBlock(coded, squares, rejected)

    def add_block(self, block: StoredBlock, *, copy: bool = True) -> list[FullFile]:
        """As ``add``."""
        arrays, rejected = block.arrays, block.rejected
        if set(arrays) != set(self._layouts):
            raise ValueError(f"{self.owner} needs {sorted(self._layouts)}, got {sorted(arrays)}.")
        num_rows = len(next(iter(arrays.values())))
        if self._next + num_rows > self.stop:
            raise ValueError(
                f"{self.owner}, shard {self.shard}: rows to {self._next + num_rows:,}, "
                f"must be {self.stop:,}."
            )
        for name, squares in block.lost.items():
            lost, total = self._lost.get(name, (0.0, 0.0))
            self._lost[name] = lost + squares[0], total + squares[1]
        full: list[FullFile] = []
        for kind, values in arrays.items():
            layout = self._layouts[kind]
            expected = (num_rows, *layout.row_shape)
            if values.shape != expected or values.dtype != layout.dtype:
                raise ValueError(
                    f"{self.owner}/{kind}, shard {self.shard}: got {values.dtype} {values.shape}, "
                    f"must be {layout.dtype} {expected}."
                )
            if rejected and copy:
                values = values.copy()
                values[list(rejected)] = np.nan if layout.dtype.kind == "f" else 0
            full += self._fill(layout, values, copy)
        self._next += num_rows
        return full

    def write(self, file: FullFile) -> None:
        """Encode a file and make it durable."""
        encoded = self._encoded(file)
        with ThreadPoolExecutor(1, "sha256") as hashing:  # as slow as a disk: beside, not after
            digest = hashing.submit(sha256_of, encoded)
            self._files.publish(file.path, encoded)
        self.written[file.path] = (sum(buffer.nbytes for buffer in encoded), digest.result())

    def _fill(self, layout: ArrayLayout, values: NDArray[Any], copy: bool) -> list[FullFile]:
        full, taken = [], 0
        while taken < len(values):
            row = self._next + taken
            number = row // layout.file_rows
            first = number * layout.file_rows
            num_rows = min(first + layout.file_rows, self.stop) - first
            some = values[taken : taken + num_rows - (row - first)]
            if not copy and len(some) == num_rows:
                self._filling[layout.kind] = some
            else:
                if row == first:
                    shape = (num_rows, *layout.row_shape)
                    self._filling[layout.kind] = np.empty(shape, layout.dtype)
                self._filling[layout.kind][row - first : row - first + len(some)] = some
            taken += len(some)
            if row - first + len(some) == num_rows:
                full.append(FullFile(layout, number, self._filling.pop(layout.kind)))
        return full

    def _encoded(self, file: FullFile) -> list[memoryview]:
        layout, values = file.layout, file.values
        if not self._info.compression:
            return encode_shard(values, layout.file_rows)
        document = array_document(self._info, layout.kind, layout.row_shape, len(values))
        return [encode_compressed(values, document).data]
