"""Tables larger than memory are read row group by row group, each once, within a bound."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phistill.errors import SourceError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.add_views import add_views
from phistill.pipeline.decode.views import View
from phistill.pipeline.images.order import windowed
from phistill.pipeline.images.tables.parquet import ParquetSource
from phistill.pipeline.images.tables.row_groups import Group
from phistill.pipeline.index import build_index, reads_of_shards
from phistill.pipeline.settings import WorkerShards
from tests.pipeline.images.test_left_out import picture

NUM_TABLES, GROUPS, ROWS = 4, 5, 8
IMAGE_BYTES = 4000


class Watched(ParquetSource):
    """Counts how often each row group is read, and how many bytes of them are held at most."""

    reads: Counter[Group]
    peak = 0

    def _read_group(self, group: Group) -> pa.ChunkedArray:
        self.reads[group] += 1
        return super()._read_group(group)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        data = super().read(uri, offset, length)
        self.peak = max(self.peak, self._buffer.held_bytes)
        return data


def image(number: int) -> bytes:
    """A picture of its own, filled up so that a row group has a known size."""
    return picture() + number.to_bytes(4, "big") + os.urandom(IMAGE_BYTES)


def tables(folder: Path) -> list[str]:
    names = []
    for number in range(NUM_TABLES):
        name = f"train-{number:05d}-of-{NUM_TABLES:05d}.parquet"
        first = number * GROUPS * ROWS
        images = [image(first + row) for row in range(GROUPS * ROWS)]
        pq.write_table(
            pa.table({"image": images}), folder / name, row_group_size=ROWS,
            compression="none", use_dictionary=False,
        )  # fmt: skip
        names.append(name)
    return names


def watched(folder: Path, names: Sequence[str], num_groups: int) -> Watched:
    """A source that may hold so many row groups."""
    source = Watched(folder, names, memory_bytes=num_groups * ROWS * (IMAGE_BYTES + 2000))
    source.reads = Counter()
    return source


def test_every_row_group_is_read_once_and_few_are_held(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    source = watched(tmp_path / "d", tables(tmp_path / "d"), num_groups=6)
    before = set(os.listdir(tempfile.gettempdir()))
    cache = extract(
        source, tmp_path / "c", [f"t={tiny}"], settings=CacheSettings(pixel_size=8, shard_rows=8),
        options=ExtractOptions(num_workers=1),
    ).cache  # fmt: skip
    source.close()
    assert cache.rows(split="all").size == NUM_TABLES * GROUPS * ROWS
    assert set(source.reads.values()) == {1}
    assert len(source.reads) == NUM_TABLES * GROUPS
    assert 0 < source.peak <= source._memory_bytes
    # Nothing was unpacked to a disk.
    new = set(os.listdir(tempfile.gettempdir())) - before
    assert not {name for name in new if "phistill" in name}


def test_a_worker_reads_its_own_rows_in_order(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "d").mkdir()
    names = tables(tmp_path / "d")
    settings = CacheSettings(pixel_size=8, shard_rows=8)
    for index in range(2):
        source = watched(tmp_path / "d", names, num_groups=6)
        options = ExtractOptions(num_workers=1, worker=WorkerShards(index, 2))
        extract(source, tmp_path / "c", [f"t={tiny}"], settings=settings, options=options)
        source.close()
        assert set(source.reads.values()) == {1}
        assert source.peak <= source._memory_bytes


def test_rows_are_mixed_within_a_window_of_row_groups_and_all_are_there(tmp_path: Path) -> None:
    source = watched(tmp_path, tables(tmp_path), num_groups=8)
    records = source.records()
    index = build_index(records, num_views=1, seed=0, source=source)
    assert sorted(index["id"].to_pylist()) == sorted(records["id"].to_pylist())
    groups = [
        (uri, offset // ROWS)
        for uri, offset in zip(index["uri"].to_pylist(), index["offset"].to_pylist(), strict=True)
    ]
    first, last = groups[: 4 * ROWS], groups[-4 * ROWS :]
    assert len(set(first)) <= 5 < len(set(groups))
    assert len(set(first[:ROWS])) > 1  # mixed
    assert not set(first) & set(last)
    assert len({uri for uri, _ in first}) > 1  # of several tables
    # Where everything fits, the order is that of all images.
    whole = ParquetSource(tmp_path, source._tables)
    mixed = build_index(records, num_views=1, seed=0, source=whole)
    assert mixed.equals(build_index(records, num_views=1, seed=0))


def test_a_part_larger_than_a_window_is_a_window() -> None:
    parts = np.repeat(np.arange(4), 3)
    order = windowed(np.random.default_rng(0), parts, np.array([100, 1, 1, 100]), window=2)
    turns = parts[order].reshape(4, 3)
    assert sorted(order.tolist()) == list(range(12))
    large = [set(turn) for turn in turns if set(turn) & {0, 3}]
    assert {0} in large
    assert {3} in large


def test_out_of_order_it_is_slow_and_right(tmp_path: Path) -> None:
    source = watched(tmp_path, tables(tmp_path), num_groups=2)
    records = source.records()
    source.expect([(records["uri"][0].as_py(), 0)])
    order = np.random.default_rng(0).permutation(records.num_rows)[:60].tolist()
    lines = records.take(pa.array(order)).to_pylist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda e: source.read(e["uri"], e["offset"], -1), lines))
    start = len(picture())
    table = {uri: number for number, uri in enumerate(source._tables)}
    expected = [table[e["uri"]] * GROUPS * ROWS + e["offset"] for e in lines]
    assert [int.from_bytes(data[start : start + 4], "big") for data in found] == expected
    assert source.peak <= source._memory_bytes
    source.close()


def test_a_row_group_that_failed_is_tried_again(tmp_path: Path) -> None:
    source = watched(tmp_path, tables(tmp_path), num_groups=6)
    uri = source._tables[0]
    source.expect([(uri, 0), (uri, 1)])
    data = (tmp_path / uri).read_bytes()
    fresh = watched(tmp_path, source._tables, num_groups=6)
    fresh._table(uri)
    (tmp_path / uri).write_bytes(b"PAR1" + bytes(len(data) - 4))
    with pytest.raises(SourceError, match="cannot be read"):
        fresh.read(uri, 0, -1)
    (tmp_path / uri).write_bytes(data)
    assert fresh.read(uri, 0, -1).startswith(picture())
    for opened in (source, fresh):
        opened.close()
        opened.close()


def test_further_views_are_read_row_group_by_row_group_too(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    source = watched(tmp_path / "d", tables(tmp_path / "d"), num_groups=6)
    settings = CacheSettings(pixel_size=8, shard_rows=8)
    cache = extract(source, tmp_path / "c", [f"t={tiny}"], settings=settings).cache
    num_shards = cache.info.num_shards
    add_views(cache, [View("center-crop")], source.records(), source)
    again = watched(tmp_path / "d", source._tables, num_groups=6)
    shards = list(range(num_shards, cache.info.num_shards))
    reads = list(reads_of_shards(cache, shards))
    again.expect(iter(reads))
    for uri, offset in reads:
        again.read(uri, offset, -1)
    assert set(again.reads.values()) == {1}
    for opened in (source, again):
        opened.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("row-groups")]
