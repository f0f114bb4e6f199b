"""Killed at any request that changes the store, a cache there ends as an uninterrupted one.

``PHISTILL_FULL=1`` tries every request; otherwise an even sample of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import phistill.cache as store
from phistill.cache.upkeep.verify import verify
from tests.object_store import BUCKET, FaultProxy

SCRIPT = Path(__file__).parents[2] / "writing_script.py"
SAMPLE = None if os.environ.get("PHISTILL_FULL") == "1" else 3


def start(location: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), location]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said


def is_change(method: str, path: str) -> bool:
    """Whether a request changes the cache; beats of the lease come when they like."""
    return (method == "PUT" or "?delete" in path) and ".lease" not in path


def test_killed_at_a_request_and_run_again_it_ends_the_same(
    bucket_url: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    finish(start(str(tmp_path / "whole")))
    digest = store.open(tmp_path / "whole").digest()
    finish(start(bucket_url))
    assert store.open(bucket_url).digest() == digest
    num_changes = sum(is_change(*request) for request in proxy.requests)
    assert num_changes > 15
    places = range(1, num_changes + 1)
    if SAMPLE is not None:
        places = range(1, num_changes + 1, (num_changes - 1) // (SAMPLE - 1))
    for place in places:
        url = f"s3://{BUCKET}/{bucket_url.split('/')[3]}/{place}"
        killed = _killed_at(place, url, proxy)
        assert killed == -signal.SIGKILL, f"change {place}"
        finish(start(url))
        cache = store.open(url)
        assert cache.digest() == digest, f"change {place}"
        assert verify(cache).findings == ()
        assert not [path for path in cache.files.walk() if path.startswith(".lease")]


def _killed_at(place: int, url: str, proxy: FaultProxy) -> int:
    """Kill the script when its change number ``place`` arrives; that one is still carried out."""
    seen = 0
    process = start(url)

    def look(method: str, path: str) -> None:
        nonlocal seen
        seen += is_change(method, path)
        if seen == place and process.poll() is None:
            process.kill()

    proxy.on_request = look
    process.communicate()
    proxy.on_request = lambda method, path: None
    return process.returncode
