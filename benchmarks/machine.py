"""What a benchmark says of the machine it ran on, and what it asks of the process.

It loads no library of arrays, so that importing it changes no memory that is measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path


def anonymous_mb() -> float:
    """RssAnon of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def bytes_read() -> int:
    """Bytes this process asked of the kernel with read calls (rchar)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


class Peak:
    """The largest anonymous memory seen while entered, sampled every ``every_s`` seconds."""

    def __init__(self, every_s: float = 0.05) -> None:
        self._every_s = every_s

    def __enter__(self) -> Peak:
        self.megabytes, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.megabytes = max(self.megabytes, anonymous_mb())


def header(name: str, *facts: str) -> list[str]:
    """The head of a section: what was run, when, and on what."""
    return [f"## {name}", "", machine_line(*facts), ""]


def machine_line(*facts: str) -> str:
    """When and on what, then ``facts``; a loaded machine shows in the load average."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    parts = (
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        f"commit {commit}",
        cpu[0].split(": ")[1] if cpu else platform.machine(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"load {os.getloadavg()[0]:.1f} at the start",
        f"Python {platform.python_version()}",
        *facts,
    )
    return ", ".join(parts) + "."
