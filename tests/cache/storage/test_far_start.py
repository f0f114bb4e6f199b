"""Opening a large cache on an object store costs a handful of requests, whatever its shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, CommitRecord, TeacherInfo
from phistill.cache.committed.packs import publish_facts, publish_records
from phistill.cache.format.facts import ImageFacts
from tests.conftest import small_index
from tests.object_store import FaultProxy

NUM_SHARDS, SHARD_ROWS = 5000, 16
"""As many shards as 1.28 M rows have at 256 rows a shard."""
NUM_TEACHERS = 8
MAX_REQUESTS = 50


def facts_of(rows: int) -> ImageFacts:
    generator = np.random.default_rng(rows)
    sha256 = generator.integers(0, 256, (SHARD_ROWS, 32), np.uint8)
    size = np.full((SHARD_ROWS, 2), 500, np.uint32)
    box = np.tile(np.array([0, 0, 500, 500], np.uint32), (SHARD_ROWS, 1))
    facts = ImageFacts(sha256, size, box, np.full(SHARD_ROWS, 7, np.uint8))
    return facts.decided(generator.random(SHARD_ROWS) < 0.1)


def records_of(cache: Cache, owner: str, facts: dict[int, str]) -> Iterator[CommitRecord]:
    paths, name = cache.paths(owner), "ab" * 32
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        yield CommitRecord(
            owner=owner,
            shard=shard,
            start=start,
            num_rows=stop - start,
            files=dict.fromkeys(paths(shard), (1000, name)),
            facts=facts[shard],
            reasons={3: "cannot be decoded"} if shard % 100 == 0 else {},
            environment={"torch": "2.5"},
        )


@pytest.fixture
def large(bucket_url: str) -> Cache:
    """A finished cache that has everything but its features."""
    info = CacheInfo(
        seed=0,
        shard_rows=SHARD_ROWS,
        holdout=0.1,
        pixel_size=4,
        views=({"kind": "resize"},),
        decode={},
    )
    cache = store.create(bucket_url, info, small_index(NUM_SHARDS * SHARD_ROWS))
    for number in range(NUM_TEACHERS):
        widths = {"patches": 8, "summary": 8}
        cache.add_teacher(TeacherInfo(name=f"t{number}", grid=(2, 2), widths=widths))
    for number, shards in cache.info.ranges().items():
        facts = {shard: facts_of(shard) for shard in shards}
        publish_facts(cache.files, number, facts)
        digests = {shard: one.digest for shard, one in facts.items()}
        for owner in cache.owners:
            records = {record.shard: record for record in records_of(cache, owner, digests)}
            publish_records(cache.files, number, owner, records)
    return cache


def test_a_run_on_a_large_cache_begins_with_a_handful_of_requests(
    large: Cache, proxy: FaultProxy, record_property: Any
) -> None:
    proxy.requests.clear()
    cache = store.open(large.location)
    cache.require_complete()
    train, heldout = cache.rows(), cache.rows(split="heldout")
    for owner in cache.owners:
        for kind in cache.shapes(owner):
            cache.reader(owner, kind)
        assert len(cache.commits(owner).rejected) == NUM_SHARDS // 100
    num_requests = len(proxy.requests)
    assert num_requests <= MAX_REQUESTS
    assert train.size + heldout.size == NUM_SHARDS * SHARD_ROWS - NUM_SHARDS // 100
    again = cache.rows()
    assert len(proxy.requests) == num_requests, "what was listed is remembered"
    np.testing.assert_array_equal(train, again)
    cache.refresh()
    np.testing.assert_array_equal(cache.rows(), train)
    record_property("G22", f"{num_requests} requests until rows of 9 owners can be read")
