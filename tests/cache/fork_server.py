"""Runs the writing script again and again in forked children: a kill costs no import.

Reads lines of ``PATH KILL_AFTER_SECONDS MORE_FILES`` (-1: no kill, no limit of open files) and
answers with the child's status (negative: the signal) and the seconds it ran. What the child says
on an error goes to PATH.error.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TextIO

from writing_script import main  # type: ignore[import-not-found]

from phistill.cache import CacheInfo
from phistill.cache.format.arrays import array_document

ONE_ROW = CacheInfo(seed=0, shard_rows=1, holdout=0.0, pixel_size=1, views=({},), decode={})


def child(path: Path, more_files: int, said: TextIO) -> None:
    if more_files >= 0:
        array_document(ONE_ROW, "pixels", (1,), 1)  # zarr's event loop has files of its own
        already = len(os.listdir("/proc/self/fd")) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (already + more_files,) * 2)
    try:
        main(path)
    except Exception:
        traceback.print_exc(file=said)
        said.flush()
        os._exit(1)
    os._exit(0)


def run(path: Path, kill_after: float, more_files: int) -> tuple[int, float]:
    begun = time.monotonic()
    with path.with_suffix(".error").open("w") as said:
        process = os.fork()
        if not process:
            child(path, more_files, said)
        if kill_after >= 0:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # whatever is imported late is imported here
        main(Path(folder, "c"))
    for line in sys.stdin:
        place, kill_after, more_files = line.rsplit(" ", 2)
        print(*run(Path(place), float(kill_after), int(more_files)), flush=True)
