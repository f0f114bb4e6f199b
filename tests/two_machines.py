"""Two machines that share nothing: two network namespaces joined by a cable, each with a folder of
its own. Needs root and iproute2; ``joined_machines`` skips the test where it may not make them.

A process of one cannot reach a port of the other's loopback, so what works here by accident on one
machine does not. The disk is one, of course: give each machine its own folders.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

PORT = 29_500
"""Free: nothing else listens in a namespace that was just made."""

_NUMBERS = count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One namespace."""

    name: str
    rank: int
    address: str
    first_address: str
    """Of the machine that rank 0 runs on."""

    cable: str
    """Its end of the cable, as gloo must be told."""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """``command`` as torchrun would start its one process of this machine."""
        variables = {
            "RANK": str(self.rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.first_address,
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": self.cable,
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env={**os.environ, **variables, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def joined_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces at 10.77.0.1 and 10.77.0.2, gone afterwards with all that runs in them."""
    mark = f"ph{os.getpid()}-{next(_NUMBERS)}"
    machines = tuple(
        Machine(
            name=f"{mark}-{rank}",
            rank=rank,
            address=f"10.77.0.{rank + 1}",
            first_address="10.77.0.1",
            cable=f"c{rank}",
        )
        for rank in (0, 1)
    )
    first, second = machines
    made: list[str] = []
    try:
        for machine in machines:
            if _ip("netns", "add", machine.name).returncode:
                pytest.skip("network namespaces are not permitted here")
            made.append(machine.name)
            _must("-n", machine.name, "link", "set", "lo", "up")
        _must("-n", first.name, "link", "add", first.cable, "type", "veth",
              "peer", "name", second.cable, "netns", second.name)  # fmt: skip
        for machine in machines:
            _must("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.cable)
            _must("-n", machine.name, "link", "set", machine.cable, "up")
        yield first, second
    finally:
        for name in made:
            pids = _ip("netns", "pids", name).stdout.split()
            subprocess.run(["kill", "-9", *pids], check=False) if pids else None
            _must("netns", "del", name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def _must(*arguments: str) -> None:
    done = _ip(*arguments)
    assert done.returncode == 0, done.stderr
