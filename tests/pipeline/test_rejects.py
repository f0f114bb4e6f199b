"""Rejects are added up as shards come, those of other workers now and then."""

from __future__ import annotations

from pathlib import Path

import pytest

from phistill.cache import Cache, CommitRecord, TeacherInfo
from phistill.cache.committed.commits import Commits
from phistill.errors import TooManyRejects
from phistill.pipeline.rejects import RejectBudget, rejects
from tests.conftest import CacheFactory


class CountingCache(Cache):
    """A cache that knows how often its commit records were asked for."""

    def __init__(self, path: Path) -> None:
        self.looks = 0
        super().__init__(path)

    def commits(self, owner: str) -> Commits:
        self.looks += 1
        return super().commits(owner)


def with_reject(shard: int, slots: int = 1) -> CommitRecord:
    return CommitRecord(
        owner="a",
        shard=shard,
        start=shard * 16,
        num_rows=16,
        files={},
        facts="ab" * 32,
        reasons=dict.fromkeys(range(slots), "bad"),
        environment={},
    )


def test_a_reject_in_every_shard_is_counted_in_linear_time(make_cache: CacheFactory) -> None:
    teacher = TeacherInfo(name="a", grid=(1, 1), widths={"patches": 1})
    cache = make_cache(
        num_rows=600, shard_rows=2, pixel_size=1, teachers=(teacher,), rejects=range(0, 600, 2)
    )
    records = list(cache.commits("a").values())
    for owner in cache.owners:
        cache.forget_shards(owner, cache.info.shards())
    counting = CountingCache(cache.path)
    budget = RejectBudget(counting, 1.0)
    counting.looks = 0
    for number, record in enumerate(records):
        counting.publish_record(record)
        budget.spend(record)
        assert budget.num_rejects == number + 1
    assert counting.looks <= 2 * 60, "two owners, log(300) / log(1.1) times and not 300 times"


def test_what_others_reject_is_counted_too(make_cache: CacheFactory) -> None:
    cache, other = make_cache(), make_cache(name="other", rejects=range(16, 21))
    for owner in cache.owners:
        cache.forget_shard(owner, 1)
    budget = RejectBudget(Cache(cache.path), 0.1)
    for owner in cache.owners:
        cache.publish_record(other.commits(owner)[1])
    budget.check()
    budget.count_again()
    assert budget.num_rejects == 5
    budget.spend(with_reject(2, 0))
    with pytest.raises(TooManyRejects, match=r"6 of 50 rows were rejected.*invented \(5\)"):
        budget.spend(with_reject(2))
    assert rejects(cache) == tuple((f"image-{row:05d}", "invented") for row in range(16, 21))
