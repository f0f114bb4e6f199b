"""The index is read by row group, each checked by itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from phistill.cache.format.index import GROUP_ROWS, IndexFile, encode_index
from phistill.cache.segments import MAX_OPEN
from phistill.cache.upkeep.append import add_segment
from phistill.errors import CorruptCache
from tests.conftest import CacheFactory, small_index

NUM_ROWS = 3 * GROUP_ROWS + 100
COLUMNS = ("row", "id", "uri")


class CountingBytes:
    """A file's content that knows how much of it was fetched."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.fetched = 0

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self._data[part]
        self.fetched += found.size
        return found


@pytest.fixture(scope="module")
def encoded() -> tuple[pa.Table, bytes, Any]:
    table = small_index(NUM_ROWS)
    return table, *encode_index(table, start=0, shard_rows=16)


def test_lines_come_in_the_order_asked_for(encoded: tuple[pa.Table, bytes, Any]) -> None:
    table, data, segment = encoded
    file = IndexFile(CountingBytes(data), segment, "x")
    assert file.table(table.column_names).equals(table)
    again = file.table(table.column_names)
    assert encode_index(again, start=0, shard_rows=16) == (data, segment), "nothing sticks to it"
    for lines in (
        np.random.default_rng(0).permutation(NUM_ROWS)[:1000],
        np.arange(GROUP_ROWS - 5, GROUP_ROWS + 5),
        np.array([7, 7, 3]),
        np.empty(0, np.int64),
    ):
        expected = table.select(COLUMNS).take(pa.array(lines))
        assert file.lines(lines, COLUMNS).to_pylist() == expected.to_pylist()


def test_a_line_costs_its_row_group(encoded: tuple[pa.Table, bytes, Any]) -> None:
    _, data, segment = encoded
    content = CountingBytes(data)
    file = IndexFile(content, segment, "x")
    footer = content.fetched
    for line in (5, 6, 7):
        assert file.lines(np.array([line]), ["id"])["id"].to_pylist() == [f"image-{line:05d}"]
    assert content.fetched - footer < len(data) / 2


def test_a_flipped_byte_is_noticed_where_it_is_read(encoded: tuple[pa.Table, bytes, Any]) -> None:
    table, data, segment = encoded
    generator = np.random.default_rng(0)
    for position in generator.choice(len(data), 200, replace=False).tolist():
        bad = bytearray(data)
        bad[position] ^= 1 << int(generator.integers(8))
        with pytest.raises(CorruptCache, match=r"x(: lines \d+ to \d+ were changed| is not the)"):
            IndexFile(CountingBytes(bytes(bad)), segment, "x").table(table.column_names)
    for cut in (data[:-1], data[:100], b"", data + b"PAR1"):
        with pytest.raises(CorruptCache):
            IndexFile(CountingBytes(cut), segment, "x")


def test_lines_of_a_cache_with_several_segments(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20)
    further = small_index(10).drop_columns(["label"]).set_column(0, "row", [np.arange(32, 42)])
    ids = [[f"new-{row}" for row in range(10)]]
    add_segment(cache, further.set_column(1, "id", ids))
    rows = np.array([41, 3, 32, 19, 0])
    found = cache.lines(rows, ["row", "label"])
    assert found["row"].to_pylist() == rows.tolist()
    assert found["label"].to_pylist() == [None, "class-0", None, "class-1", "class-0"]
    assert cache.image_id(32) == "new-0"
    assert cache.index()["row"].to_pylist() == [*range(20), *range(32, 42)]
    assert cache.index(["id"]).num_rows == cache.info.num_real_rows == 30
    assert "rows=30, " in repr(cache), "without the padding between segments"


def test_a_cache_with_many_segments_keeps_few_files_open(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=4, shard_rows=4)
    for number in range(1, 2 * MAX_OPEN):
        further = small_index(4).set_column(0, "row", [np.arange(4 * number, 4 * number + 4)])
        add_segment(cache, further.set_column(1, "id", [[f"{number}-{row}" for row in range(4)]]))
    before = len(os.listdir("/proc/self/fd"))
    assert cache.index().num_rows == 8 * MAX_OPEN
    assert cache.lines(np.arange(8 * MAX_OPEN), ["id"])["id"][-1].as_py() == f"{number}-3"
    assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN
