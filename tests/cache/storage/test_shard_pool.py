"""Open files: one budget for all readers of a process, and words when it is not enough."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from awscrt.checksums import crc32c

from phistill.cache import Cache, TeacherInfo
from phistill.cache.format.shard import index_bytes
from phistill.cache.storage.limits import open_file_limit
from phistill.cache.storage.shard_pool import POOL, ShardPool
from phistill.errors import CorruptCache, StoreError

CacheFactory = Callable[..., Cache]
TEACHERS = tuple(
    TeacherInfo(name=name, grid=(1, 1), widths={"patches": 2, "summary": 2}) for name in "abcd"
)


class Shard:
    """An open shard."""

    def read(self, *_: object) -> None: ...
    def read_row(self, *_: object) -> None: ...
    def prefetch(self, slots: range) -> None: ...
    def release(self, slots: range) -> None: ...


def test_all_readers_share_one_budget_and_the_first_opened_goes_first() -> None:
    pool, opened = ShardPool(3), list[Shard]()

    def get(reader: str, shard: int) -> object:
        def open_shard(_: int) -> Shard:
            opened.append(Shard())
            return opened[-1]

        return pool.held(reader).get(shard) or pool.open(reader, shard, open_shard)

    first = get("x", 0)
    get("x", 1)
    get("y", 0)
    assert get("x", 0) is first
    get("y", 1)
    assert len(pool) == 3
    assert len(opened) == 4
    get("x", 1)
    get("y", 0)
    assert len(opened) == 4
    assert get("x", 0) is not first, "it had to go"
    pool.retire("y")
    assert len(pool) == 1
    pool.forget("x", [0])
    assert len(pool) == 0
    for shard in range(100):
        get("z", shard)
    assert len(pool) == 3
    assert dict(pool.held("z")) == dict(zip((97, 98, 99), opened[-3:], strict=True))


def test_a_reader_that_is_gone_leaves_no_file_open(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=64)
    before = len(os.listdir("/proc/self/fd"))
    readers = [cache.reader("a", kind) for kind in ("patches", "summary")]
    for reader in readers:
        reader.read(np.arange(64))
    assert len(os.listdir("/proc/self/fd")) == before + 8
    del readers, reader
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(POOL) <= POOL.size


@pytest.mark.parametrize("limit", [64, 256])
def test_nine_arrays_of_many_shards_are_read_within_the_limit(
    make_cache: CacheFactory, limit: int
) -> None:
    cache = make_cache(num_rows=40, shard_rows=1, teachers=TEACHERS)  # 360 files
    program = f"""
import numpy as np, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
import phistill.cache
cache = phistill.cache.open({str(cache.path)!r})
readers = [cache.reader("pixels", "pixels")]
readers += [cache.reader(t, kind) for t in "abcd" for kind in ("patches", "summary")]
generator = np.random.default_rng(0)
for _ in range(20):
    rows = generator.permutation(40)[:24]
    for reader in readers:
        reader.read(rows)
open({str(Path(__file__))!r}).close()  # some are left
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_shard_is_looked_through_once_and_each_row_every_time(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened again for every row, as where there are more shards than files may be open."""
    cache = make_cache(num_rows=64, shard_rows=8, rejects=())
    monkeypatch.setattr(POOL, "_size", 1)
    reader = cache.reader("a", "patches")
    values = reader.read(np.arange(64))
    path = cache.path / "teachers/a/patches/c/2/0/0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes(10))  # the index
    np.testing.assert_array_equal(reader.read(np.array([60, 17])), values[[60, 17]])
    with pytest.raises(CorruptCache, match="the shard index does not match its checksum"):
        cache.reader("a", "patches").read(np.array([17]))
    reader.read(np.array([0]))
    path.write_bytes(b"?" + whole[1:])
    with pytest.raises(CorruptCache, match=r"row 16 .*does not match its checksum"):
        reader.read(np.array([0, 16]))
    path.write_bytes(whole[:200])
    reader.read(np.array([0]))
    with pytest.raises(CorruptCache, match=r"row 18 .*does not match its checksum"):
        reader.read(np.array([18]))
    path.unlink()
    reader.read(np.array([0]))
    with pytest.raises(CorruptCache, match=r"is committed but missing. Run `phistill verify"):
        reader.read(np.array([18]))


def test_a_shard_whose_index_says_another_order_is_refused(make_cache: CacheFactory) -> None:
    """Whole and with a right checksum, but its rows do not lie one after another."""
    cache = make_cache(num_rows=16, shard_rows=8, rejects=())
    path = cache.path / "teachers/a/patches/c/1/0/0"
    data = path.read_bytes()
    size = index_bytes(8)
    index = np.frombuffer(data[-size:-4], "<u8").reshape(8, 2)[::-1]
    path.write_bytes(data[:-size] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))
    with pytest.raises(CorruptCache, match="the shard index is not that of its rows"):
        cache.reader("a", "patches").read(np.array([9]))


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    program = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
hard = min(hard, 4096)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
from phistill.cache.format.shard import index_bytes
from phistill.cache.storage.limits import open_file_limit
assert open_file_limit() == hard, open_file_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert open_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_files_taken_by_others_cost_the_pool_its_part_and_then_are_explained(
    make_cache: CacheFactory,
) -> None:
    cache = make_cache(num_rows=64, shard_rows=1)
    program = f"""
import numpy as np, os, resource
import phistill.cache
from phistill.errors import CorruptCache, StoreError
cache = phistill.cache.open({str(cache.path)!r})
reader = cache.reader("a", "patches")
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
reader.read(np.arange(40))
others = []
try:
    while True:
        others.append(os.open({str(cache.path)!r}, os.O_RDONLY))
except OSError:
    pass
reader.read(np.arange(64))  # with fewer files of its own
del reader
reader = cache.reader("a", "patches") if others.pop() and not os.close(others.pop()) else None
try:
    while True:
        others.append(os.open({str(cache.path)!r}, os.O_RDONLY))
except OSError:
    pass
try:
    reader.read(np.arange(3))
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "patches/c/0/0/0 cannot be opened" in done.stdout
    assert "This process may have 128 files open" in done.stdout
    assert "ulimit -n" in done.stdout


def test_a_shard_that_cannot_be_opened_is_named(
    make_cache: CacheFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said while what was not made is cleaned up."""
    cache = make_cache()
    path = cache.path / "teachers/a/patches/c/0/0/0"
    path.unlink()
    path.symlink_to(path.name)  # a loop: even an administrator cannot open it
    with pytest.raises(StoreError, match=r"patches/c/0/0/0 cannot be opened: Too many levels"):
        cache.reader("a", "patches").read(np.arange(3))
    gc.collect()
