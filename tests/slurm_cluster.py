"""A Slurm of one node on this machine: its own daemons, keys and ports, nothing of the system's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
DAEMONS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
IS_HERE = os.name == "posix" and all(shutil.which(name, path=DAEMONS) for name in PROGRAMS)

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Daemons that keep everything below ``folder``; gives the environment of Slurm's commands."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munge refuses a socket that it could not be reached through
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    text = CONFIGURATION.format(
        host=host, folder=folder, controller_port=_free_port(), node_port=_free_port()
    )
    (folder / "slurm.conf").write_text(text)
    environment = {**os.environ, "PATH": DAEMONS, "SLURM_CONF": str(folder / "slurm.conf")}
    socket_path = folder / "munge.socket"
    daemons = (
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
         f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    )  # fmt: skip
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_stop, daemon)
            if command[0] == "munged":
                _wait(socket_path.exists, "munged")
        _wait(lambda: "idle" in _run(["sinfo", "-h", "-o", "%T"], environment), "the node")
        yield environment


def wait_for_jobs(environment: dict[str, str], timeout_s: float) -> None:
    """Until no job is queued or running."""
    end = time.monotonic() + timeout_s
    while jobs := _run(["squeue", "-h", "-r", "-o", "%i %T %r"], environment):
        assert time.monotonic() < end, f"jobs are left:\n{jobs}"
        time.sleep(0.5)


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def _wait(is_true: object, what: str, timeout_s: float = 60.0) -> None:
    assert callable(is_true)
    end = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end:
            pytest.skip(f"this machine does not let Slurm start: {what} did not come up")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
