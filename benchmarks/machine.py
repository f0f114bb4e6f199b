"""What a benchmark says of the machine it ran on, and what it asks of the process."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import torch


def anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def bytes_read() -> int:
    """Bytes this process asked of the kernel with read calls (rchar)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


class Peak:
    """The largest anonymous memory seen while entered, sampled every 50 ms."""

    def __enter__(self) -> Peak:
        self.megabytes, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.megabytes = max(self.megabytes, anonymous_mb())


def header(name: str) -> list[str]:
    """What was run, when, and on what; a loaded machine shows in the load average."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        f"## {name}",
        "",
        f"{when}, commit {commit}, {cpu[0].split(': ')[1] if cpu else platform.machine()}, "
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, "
        f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}.",
        "",
    ]
