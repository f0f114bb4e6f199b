"""Workers share a cache without sharing a shard, whoever starts them."""

from __future__ import annotations

import pytest

from phistill.cache.storage.lock import Holder
from phistill.errors import UsageError
from phistill.pipeline import ExtractOptions
from phistill.pipeline.workers import Share, launched, who_misses

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shares_of_all_workers_are_every_shard_once(count: int) -> None:
    taken = [shard for index in range(count) for shard in Share(index, count).of(range(40))]
    assert sorted(taken) == list(range(40))


def test_a_worker_keeps_its_shards_when_others_finish_and_the_cache_grows() -> None:
    share = Share(1, 3)
    assert share.of([4, 5, 6, 7]) == [4, 7]
    assert share.of(range(20))[: len(share.of(range(10)))] == share.of(range(10))


def test_a_split_share_is_divided_among_its_processes() -> None:
    share = Share(1, 3)
    parts = [share.split(index, 4) for index in range(4)]
    assert sorted(s for part in parts for s in part.of(range(60))) == share.of(range(60))


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "a/b", "1/2/3", "0/0"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="worker"):
        Share.parse(text)


def test_torchrun_says_which_process_this_is() -> None:
    launch = launched(TORCHRUN)
    assert launch is not None
    assert (launch.share, launch.local_rank, launch.num_local) == (Share(5, 8), 1, 4)
    assert str(launch) == "process 5 of 8 of torchrun"


def test_srun_says_which_process_this_is() -> None:
    launch = launched(SRUN)
    assert launch is not None
    assert (launch.share, launch.local_rank) == (Share(3, 4), 1)


def test_torchrun_inside_a_step_of_slurm_wins() -> None:
    launch = launched({**SRUN, **TORCHRUN})
    assert launch is not None
    assert launch.launcher == "torchrun"


def test_a_single_process_and_a_batch_script_of_several_tasks_are_alone() -> None:
    assert launched({}) is None
    assert launched({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) is None


def test_an_environment_that_makes_no_sense_is_named() -> None:
    with pytest.raises(UsageError, match="RANK='first' in the environment"):
        launched({**TORCHRUN, "RANK": "first"})


def test_repair_is_refused_to_one_of_several_workers() -> None:
    with pytest.raises(UsageError, match="repair needs the whole cache"):
        ExtractOptions(repair=True, share=Share(0, 2))
    ExtractOptions(repair=True, share=Share(0, 1))


def test_what_is_missing_is_told_with_who_is_at_it() -> None:
    writing = [Holder(7, "a", range(1, 11, 3))]
    command = "phistill extract photos --cache c"
    assert who_misses([2, 5, 7], Share(0, 3), writing, command) == [
        "1 shard left of worker 1/3 (7): process 7 on a is extracting it.",
        "2 shards left of worker 2/3 (2, 5): nobody is extracting them; "
        "run `phistill extract photos --cache c --worker 2/3`.",
    ]
    (line,) = who_misses(range(0, 30, 3), Share(1, 3), [], command)
    assert line.startswith("10 shards left of worker 0/3 (0, 3, 6, 9, 12, ...): nobody is")
