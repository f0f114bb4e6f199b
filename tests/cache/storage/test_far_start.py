"""Opening a large cache on an object store costs a handful of requests, whatever its shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
from phistill.train.data.loader import Loader
from phistill.train.data.plan import make_plan
from phistill.train.data.source import open_source
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
    sizes = [layout.stored_bytes(SHARD_ROWS) for layout in cache.layouts(owner).values()]
    for shard in cache.info.shards():
        start, stop = cache.info.shard_range(shard)
        yield CommitRecord(
            owner=owner,
            shard=shard,
            start=start,
            num_rows=stop - start,
            files={path: (size, name) for path, size in zip(paths(shard), sizes, strict=True)},
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


def write_files(cache: Cache, shards: NDArray[np.int64]) -> int:
    """The files of some shards, all zeros; how many."""

    def write(work: tuple[str, int]) -> None:
        owner, shard = work
        arrays = {
            name: np.zeros((SHARD_ROWS, *layout.row_shape), layout.dtype)
            for name, layout in cache.layouts(owner).items()
        }
        writer = cache.shard_writer(owner, shard)
        for file in writer.add(arrays):
            writer.write(file)

    cache.files.each(write, [(owner, shard) for owner in cache.owners for shard in shards.tolist()])
    return sum(len(cache.layouts(owner)) for owner in cache.owners) * len(shards)


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
    settings: dict[str, Any] = {"num_steps": 100, "batch_size": 128, "memory_bytes": 0}
    config = TrainConfig(device="cpu", order="block", **settings)
    first = make_plan(open_caches(large.location), config).step(0)
    num_files = write_files(large, np.unique(first // SHARD_ROWS))
    proxy.requests.clear()
    run = resolve_run(open_caches(large.location), config, torch.device("cpu"))
    assert len(run.normalizers) == 2 * NUM_TEACHERS
    source = open_source(run.caches, run.targets, run.plan)
    with Loader(source, run.plan, run.targets, start=0, stop=1) as loader:
        (batch,) = loader
        assert batch.rows.tolist() == first.tolist()
    of_rows = [path for _, path in proxy.requests if "/c/" in path]
    assert len(set(of_rows)) == num_files == 17 * 16, "of each array a file for each mixed block"
    assert len(of_rows) <= 2 * num_files, "for the rows of the batch, and whole for those to come"
    num_of_train = len(proxy.requests) - len(of_rows)
    assert num_of_train <= MAX_REQUESTS, "from `train` to its first batch, statistics too"
    record_property(
        "G22",
        f"{num_requests} requests until rows of 9 owners can be read, {num_of_train} from train to "
        f"its first batch, and the {num_files} files of that",
    )
