"""What a launcher of several processes, torchrun or srun, says to each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from phistill.errors import UsageError


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among those that one command started."""

    launcher: str
    rank: int
    world: int
    local_rank: int
    num_local: int
    """Processes of the launch on this machine, as far as the launcher says; srun gives each its
    own cores and says 1."""
    variable: str = field(default="WORLD_SIZE", compare=False)
    """What says in the environment that there are several."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local_rank < 0:
            raise UsageError(
                f"{self.launcher} says rank {self.rank} (on this machine {self.local_rank}) of "
                f"{self.world} processes, counted from 0. Unset its variables in the environment, "
                "or start the processes with it."
            )

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world} of {self.launcher}"


def launched(environ: Mapping[str, str]) -> Launch | None:
    """What torchrun or srun say of this process; None when it is alone.

    A batch script of Slurm has SLURM_NTASKS as well: only a step, which srun starts, says
    SLURM_STEP_NUM_TASKS.
    """
    for launcher, rank, world, local_rank, num_local in (
        ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    ):
        if rank in environ and world in environ:
            count = _number(environ, world)
            if count > 1:
                return Launch(
                    launcher,
                    _number(environ, rank),
                    count,
                    _number(environ, local_rank) if local_rank in environ else 0,
                    _number(environ, num_local) if num_local in environ else 1,
                    world,
                )
    return None


FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Ports that the ranks of a job of Slurm meet at: below those that Linux hands out (32,768)."""


def meeting_point(launch: Launch, environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port at which the ranks of a launch meet.

    MASTER_ADDR and MASTER_PORT, which torchrun sets; under srun otherwise the first host of the
    step and a port of the job's and the step's numbers. UsageError when nothing says it.
    """
    host, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if launch.launcher == "srun":
        hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        host = host or first_host(hosts)
        if port is None:
            numbers = (environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
            job, step = (int(text) if text.isdigit() else 0 for text in numbers)
            port = str(FIRST_PORT + (job * 31 + step) % NUM_PORTS)
    if not host or port is None:
        raise UsageError(
            f"{launch}: MASTER_ADDR and MASTER_PORT in the environment must say where the "
            "processes meet. torchrun sets them."
        )
    return host, _number({"MASTER_PORT": port}, "MASTER_PORT")


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: node01 of ``node[01-04,9],gpu3``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes.strip())
    return "".join(part or "" for part in found.groups()) if found is not None else ""


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError as error:
        raise UsageError(
            f"{name}={environ[name]!r} in the environment is no number. Unset it, or start the "
            "processes with torchrun or srun."
        ) from error
