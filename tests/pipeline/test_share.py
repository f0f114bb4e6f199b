"""Workers share a cache without sharing a shard."""

from __future__ import annotations

import pytest

from phistill.cache.storage.lock import Holder
from phistill.errors import UsageError
from phistill.pipeline import ExtractOptions
from phistill.pipeline.settings import WorkerShards
from phistill.report.extraction import who_misses


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shares_of_all_workers_are_every_shard_once(count: int) -> None:
    taken = [shard for index in range(count) for shard in WorkerShards(index, count).of(range(40))]
    assert sorted(taken) == list(range(40))


def test_a_worker_keeps_its_shards_when_others_finish_and_the_cache_grows() -> None:
    share = WorkerShards(1, 3)
    assert share.of([4, 5, 6, 7]) == [4, 7]
    assert share.of(range(20))[: len(share.of(range(10)))] == share.of(range(10))


def test_a_split_share_is_divided_among_its_processes() -> None:
    share = WorkerShards(1, 3)
    parts = [share.split(index, 4) for index in range(4)]
    assert sorted(s for part in parts for s in part.of(range(60))) == share.of(range(60))


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "a/b", "1/2/3", "0/0"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="worker"):
        WorkerShards.parse(text)


def test_repair_is_refused_to_one_of_several_workers() -> None:
    with pytest.raises(UsageError, match="repair needs the whole cache"):
        ExtractOptions(repair=True, worker=WorkerShards(0, 2))
    ExtractOptions(repair=True, worker=WorkerShards(0, 1))


def test_what_is_missing_is_told_with_who_is_at_it() -> None:
    writing = [Holder(7, "a", range(1, 11, 3))]
    command = "phistill extract photos --cache c"
    assert who_misses([2, 5, 7], WorkerShards(0, 3), writing, command) == [
        "1 shard left of worker 1/3 (7): process 7 on a is extracting it.",
        "2 shards left of worker 2/3 (2, 5): nobody is extracting them; "
        "run `phistill extract photos --cache c --worker 2/3`.",
    ]
    (line,) = who_misses(range(0, 30, 3), WorkerShards(1, 3), [], command)
    assert line.startswith("10 shards left of worker 0/3 (0, 3, 6, 9, 12, ...): nobody is")
