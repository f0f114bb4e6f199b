"""Extraction on a dask.distributed cluster makes the cache of a single process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.config
import pytest
from click.testing import CliRunner
from PIL import Image

import phistill.cache as store
from phistill.cache.storage import lock
from phistill.cli import main
from phistill.errors import CacheMismatch, TooManyRejects, UsageError
from phistill.pipeline import CacheSettings, ExtractOptions, ExtractProgress, extract
from phistill.pipeline.decode.views import View
from phistill.pipeline.settings import CodeSettings, WorkerShards
from tests.object_store import FaultProxy, environment

distributed: Any = pytest.importorskip("distributed")

SETTINGS = CacheSettings(pixel_size=16, shard_rows=4, seed=1)  # 11 shards of 41 images

# tornado and distributed leave sockets to the garbage collector when a worker is killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three worker processes, which find the tests' teacher and are started again when they die."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))  # a spawned process has its parent's path
        patch.setenv("OMP_NUM_THREADS", "1")
        with distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as running:
            yield running


def on(cluster: Any, **options: Any) -> ExtractOptions:
    return ExtractOptions(scheduler=cluster.scheduler_address, num_workers=1, **options)


def test_a_worker_killed_in_the_middle_does_not_change_the_cache(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    teacher = f"t={tiny}?pause=0.2"
    whole = extract(folder, tmp_path / "whole", [teacher], settings=SETTINGS).cache
    target = tmp_path / "cluster"
    killer = Killer(target, {worker.pid for worker in cluster.workers.values()})
    calls: list[ExtractProgress] = []
    report = extract(
        folder, target, [teacher], settings=SETTINGS, options=on(cluster), on_progress=calls.append
    )
    killer.join()
    assert killer.killed is not None, "no worker was killed while it was writing"
    assert killer.killed not in {worker.pid for worker in cluster.workers.values()}
    assert store.open(target).digest() == whole.digest()
    assert report.missing_shards == ()
    assert report.rejects == (("cats/broken.png", "cannot be decoded: cannot identify image file"),)
    assert report.num_shards == 22
    assert [calls[0].done_rows, calls[-1].done_rows, calls[-1].total_rows] == [0, 82, 82]
    assert not lock.holders(target)


class Killer(threading.Thread):
    """Kills the first worker that holds shards after something was committed."""

    def __init__(self, target: Path, workers: set[int]) -> None:
        super().__init__()
        self._target, self._workers = target, workers
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.killed is None:
            if list(self._target.glob("commits/t/*.json")):
                for holder in lock.holders(self._target):
                    if holder.pid in self._workers and holder.shards is not None:
                        os.kill(holder.pid, signal.SIGKILL)
                        self.killed = holder.pid
                        return
            time.sleep(0.002)


def test_the_command_tells_workers_and_dashboard_and_ends_like_any_other(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["extract", "images", "--cache", "c", "--teacher", f"t={tiny}"]
    arguments += ["--scheduler", cluster.scheduler_address]
    found = CliRunner().invoke(main, [*arguments, "--pixel-size", "16"])
    assert found.exit_code == 0, found.output
    assert f"3 workers at {cluster.scheduler_address}, dashboard " in found.stderr
    assert "41 rows, teachers t." in found.stdout
    assert "1 rejected:" in found.stdout
    again = CliRunner().invoke(main, arguments)
    assert "c is complete: nothing to do." in again.stdout


def test_appending_and_repair_work_on_the_cluster(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    for target, options in ((tmp_path / "here", None), (tmp_path / "there", on(cluster))):
        extract(folder, target, [f"t={tiny}"], settings=SETTINGS, options=options)
    Image.new("RGB", (20, 20), (9, 0, 0)).save(folder / "new.png")
    assert extract(folder, tmp_path / "there", options=on(cluster)).num_new_images == 1
    extract(folder, tmp_path / "here", options=ExtractOptions(append=True))
    extract(folder, tmp_path / "there", options=on(cluster, append=True))
    damaged = tmp_path / "there" / "teachers/t/patches/c/2/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    repaired = extract(folder, tmp_path / "there", options=on(cluster, repair=True))
    assert (repaired.num_repaired, repaired.num_shards) == (1, 1)
    assert store.open(tmp_path / "there").digest() == store.open(tmp_path / "here").digest()


def test_codes_and_statistics_taken_in_passing_are_those_of_one_process(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    wanted: dict[str, Any] = {"fit": True, "codes": CodeSettings(bits={"t": 2.0})}
    caches = []
    for name, options in (("here", ExtractOptions(**wanted)), ("there", on(cluster, **wanted))):
        teachers = [f"t={tiny}", f"u={tiny}?scale=2"]
        report = extract(folder, tmp_path / name, teachers, settings=SETTINGS, options=options)
        assert report.statistics is not None
        caches.append(store.open(tmp_path / name))
    assert list(caches[0].teacher("t").codecs) == ["patches"]
    assert caches[0].digest() == caches[1].digest()


def test_an_image_that_changed_since_its_first_view_is_named_on_the_cluster(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    one, two = (replace(SETTINGS, views=(View(), View("center-crop"))[:n]) for n in (1, 2))
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=one)
    Image.new("RGB", (24, 21), (9, 0, 0)).save(folder / "cats" / "001.png")
    with pytest.raises(CacheMismatch, match=r"1 images changed .*cats/001.png"):
        extract(folder, tmp_path / "c", settings=two, options=on(cluster, add_views=True))


def test_what_the_tasks_wrote_to_a_store_is_reported(
    folder: Path, tiny: str, proxy: FaultProxy, bucket_url: str, cluster: Any
) -> None:
    """A store is listed once at the start."""
    values = environment(proxy.endpoint)
    with distributed.Client(cluster.scheduler_address) as client:
        client.run(lambda: os.environ.update(values))
    report = extract(folder, bucket_url, [f"t={tiny}"], settings=SETTINGS, options=on(cluster))
    assert report.missing_shards == ()
    assert [name for name, _ in report.rejects] == ["cats/broken.png"]


def test_what_a_task_raises_is_raised_here(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    with pytest.raises(CacheMismatch, match=r"another teacher 't': scale is 1\.0 there"):
        extract(folder, tmp_path / "c", [f"t={tiny}?scale=3"], options=on(cluster))
    for number in range(20):
        (folder / f"bad-{number}.jpg").write_bytes(b"x" * number)
    with pytest.raises(TooManyRejects, match="of 61 rows were rejected"):
        extract(folder, tmp_path / "d", [f"t={tiny}"], settings=SETTINGS, options=on(cluster))


def test_a_task_waits_for_a_lost_worker_that_still_writes_and_then_does_nothing(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    before = cache.digest()
    record = cache.commits("t")[3].to_bytes()
    cache.forget_shard("t", 3)
    written = (cache.path / "teachers/t/patches/c/3/0/0").stat().st_mtime_ns
    task = threading.Thread(
        target=extract, args=(folder, cache.path), kwargs={"options": on(cluster)}
    )
    with cache.writing([2, 3]):
        task.start()
        task.join(2)
        assert task.is_alive()
        cache.write_small("commits/t/000003.json", record)  # the last a lost worker does
    task.join()
    assert (cache.path / "teachers/t/patches/c/3/0/0").stat().st_mtime_ns == written
    assert cache.digest() == before


def test_a_time_limit_leaves_the_rest_for_the_next_run(
    folder: Path, tiny: str, tmp_path: Path, cluster: Any
) -> None:
    teacher = f"t={tiny}?pause=0.2"
    first = extract(
        folder, tmp_path / "c", [teacher], settings=SETTINGS, options=on(cluster, time_limit_s=0.01)
    )
    assert first.out_of_time
    assert first.missing_shards
    second = extract(folder, tmp_path / "c", options=on(cluster))
    assert not second.out_of_time
    whole = extract(folder, tmp_path / "whole", [teacher], settings=SETTINGS).cache
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_a_scheduler_that_does_not_answer_is_named(folder: Path, tmp_path: Path) -> None:
    options = ExtractOptions(scheduler="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match=r"tcp://127\.0\.0\.1:9' does not answer"),
    ):
        extract(folder, tmp_path / "c", ["demo:clip"], options=options)
    assert not (tmp_path / "c").exists()


def test_a_cluster_and_a_workers_share_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        ExtractOptions(scheduler="tcp://127.0.0.1:9", worker=WorkerShards(0, 2))
