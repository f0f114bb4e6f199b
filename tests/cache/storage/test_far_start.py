"""Opening a large cache on an object store costs a handful of requests, whatever its shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import phistill.cache as store
from phistill.cache import Cache, CacheInfo, CommitRecord, TeacherInfo
from phistill.cache.committed.packs import publish_facts, publish_records
from phistill.cache.format.facts import ImageFacts
from phistill.cache.joined import open_caches
from phistill.stats import Moments, Normalizer
from phistill.stats.description import Description
from phistill.stats.fit.loading import MergedFacts, merged_path, normalizer_path
from phistill.stats.fit.pieces import PassOptions, array_key
from phistill.stats.moments.pass_result import PassResult, moments_digest
from phistill.stats.moments.squared_norms import SquaredNorms
from phistill.train import TrainConfig
from phistill.train.resolve import resolve_run
from tests.conftest import small_index
from tests.object_store import FaultProxy

NUM_SHARDS, SHARD_ROWS = 5000, 256
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
    store_statistics(cache)
    return cache


def store_statistics(cache: Cache) -> None:
    """Invented moments and normalizers of every array, where ``fit_stats`` puts them."""
    moments = Moments(400, np.zeros(8), 400 * np.eye(8))
    result = PassResult(100, moments, SquaredNorms.zero())
    normalizer = Normalizer.fit(moments, "phi-s", moments_digest=moments_digest(moments))
    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).kinds:
            said: dict[str, Any] = {
                "num_vectors": 400,
                "mean_min": 0.0,
                "mean_max": 0.0,
                "std_min": 1.0,
            }
            said |= {"std_max": 1.0, "phi": 1.0, "effective_rank": 8.0, "rotation": "none"}
            described = Description(teacher=teacher, kind=kind, width=8, **said)
            options = PassOptions()
            key = array_key(cache, teacher, kind, options)
            facts = MergedFacts(key=key, options=options, description=described)
            cache.write_small(merged_path(teacher, kind), result.to_bytes(facts))
            cache.write_small(normalizer_path(teacher, kind), normalizer.to_bytes())


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
    proxy.requests.clear()
    config = TrainConfig(num_steps=100, batch_size=128, device="cpu", order="block")
    run = resolve_run(open_caches(large.location), config, torch.device("cpu"))
    assert len(run.normalizers) == 2 * NUM_TEACHERS
    num_of_train = len(proxy.requests)
    assert num_of_train <= MAX_REQUESTS, "all of the start of `train`, statistics too"
    record_property(
        "G22",
        f"{num_requests} requests until rows of 9 owners can be read, {num_of_train} of train",
    )
