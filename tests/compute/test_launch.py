"""What torchrun and srun say is read once, and makes sense or is refused."""

from __future__ import annotations

import pytest

from phistill.compute.launch import Launch, first_host, launched, meeting_point
from phistill.errors import UsageError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


def test_torchrun_says_which_process_this_is() -> None:
    launch = launched(TORCHRUN)
    assert launch == Launch("torchrun", rank=5, world=8, local_rank=1, num_local=4)
    assert str(launch) == "process 5 of 8 of torchrun"


def test_srun_says_which_process_this_is() -> None:
    assert launched(SRUN) == Launch("srun", rank=3, world=4, local_rank=1, num_local=1)


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
    with pytest.raises(UsageError, match=r"torchrun says rank 8 .* of 8 processes"):
        launched({**TORCHRUN, "RANK": "8"})


def test_torchrun_says_where_the_ranks_meet() -> None:
    launch = launched(TORCHRUN)
    assert launch is not None
    there = {"MASTER_ADDR": "gpu7", "MASTER_PORT": "29500"}
    assert meeting_point(launch, there) == ("gpu7", 29500)
    with pytest.raises(UsageError, match="MASTER_ADDR and MASTER_PORT"):
        meeting_point(launch, {"MASTER_ADDR": "gpu7"})
    with pytest.raises(UsageError, match="MASTER_PORT='x' in the environment is no number"):
        meeting_point(launch, {**there, "MASTER_PORT": "x"})


def test_tasks_of_srun_meet_on_the_first_host_at_a_port_of_their_step() -> None:
    launch = launched(SRUN)
    assert launch is not None
    step = {"SLURM_JOB_ID": "81234", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[03-04,9]"}
    host, port = meeting_point(launch, step)
    assert host == "gpu03"
    assert 20_000 <= port < 30_000
    assert meeting_point(launch, {**step, "SLURM_STEP_ID": "1"})[1] != port
    assert meeting_point(launch, {**step, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == ("a", 1)
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        meeting_point(launch, {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("node[01-04,9],gpu3", "node01"),
        ("r1n[2,4].cluster,x", "r1n2.cluster"),
        ("a-b[10]", "a-b10"),
        ("", ""),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
