"""The same statistics on a dask.distributed cluster, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest

import phistill.cache as store
from phistill.cache import Cache, TeacherInfo
from phistill.errors import DegenerateMoments, UsageError
from phistill.stats import FitProgress, fit_stats

distributed: Any = pytest.importorskip("distributed")

CacheFactory = Callable[..., Cache]
TEACHER = TeacherInfo(name="a", grid=(16, 16), widths={"patches": 48, "summary": 6})

# tornado and distributed leave sockets to the garbage collector when a worker is killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as running:
        yield running


def statistics(cache: Cache) -> dict[str, bytes]:
    files = sorted(cache.path.glob("teachers/*/*/**/*.safetensors"))
    return {path.relative_to(cache.path).as_posix(): path.read_bytes() for path in files}


def test_a_cluster_gives_the_bits_of_threads(make_cache: CacheFactory, cluster: Any) -> None:
    cache = make_cache(num_rows=200, teachers=[TEACHER])
    other = make_cache(num_rows=200, teachers=[TEACHER], name="cluster.cache")
    calls: list[FitProgress] = []
    rows = fit_stats(other, scheduler=cluster.scheduler_address, progress=calls.append)
    assert rows == fit_stats(cache)
    assert statistics(other) == statistics(cache)
    assert calls[-1].done_bytes == calls[-1].total_bytes


def test_an_error_on_the_cluster_is_the_error_here(make_cache: CacheFactory, cluster: Any) -> None:
    def poison(_name: str, kind: str, start: int, values: Any) -> Any:
        if kind == "patches" and start == 32:
            values[:, 0, 0] = float("nan")
        return values

    cache = make_cache(num_rows=100, teachers=[TEACHER], features=poison)
    with pytest.raises(DegenerateMoments, match=r"teacher a, patches: row \d+ \(shard 2\)"):
        fit_stats(cache, scheduler=cluster.scheduler_address)


def test_a_scheduler_that_does_not_answer_is_named(make_cache: CacheFactory) -> None:
    cache = make_cache(num_rows=20, teachers=[TEACHER])
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match=r"tcp://127\.0\.0\.1:9' does not answer"),
    ):
        fit_stats(cache, scheduler="tcp://127.0.0.1:9")


def test_a_killed_worker_costs_a_retry_and_not_the_result(
    make_cache: CacheFactory, cluster: Any
) -> None:
    cache = make_cache(num_rows=1200, teachers=[TEACHER])
    other = make_cache(num_rows=1200, teachers=[TEACHER], name="killed.cache")
    expected = fit_stats(cache)
    pids = list(cluster.scheduler_info["workers"])
    killer = _Killer(other.path, cluster)
    killer.start()
    rows = fit_stats(other, scheduler=cluster.scheduler_address)
    killer.join()
    assert killer.killed, f"no worker of {pids} was killed before the end"
    assert rows == expected
    assert statistics(store.open(other.path)) == statistics(cache)


class _Killer(threading.Thread):
    """Waits for the first partial to appear, then kills one worker with SIGKILL."""

    def __init__(self, root: Path, cluster: Any) -> None:
        super().__init__()
        self._root = root
        self._pid = next(iter(cluster.workers.values())).pid
        self.killed = False

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if list(self._root.glob("teachers/a/moments/patches/merged*")):
                return
            if list(self._root.glob("teachers/a/moments/patches/part-*.safetensors")):
                os.kill(self._pid, signal.SIGKILL)
                self.killed = True
                return
            time.sleep(0.001)
