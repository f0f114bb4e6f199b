"""Several workers make the cache that one makes, also when they are killed or overlap."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import phistill.cache as store
from phistill.cache.storage import lock
from phistill.cli import main
from phistill.errors import LockHeld, PhistillError
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.pipeline.progress import ExtractProgress
from phistill.pipeline.settings import WorkerShards
from phistill.pipeline.shard_pass import missing_shards

SETTINGS = CacheSettings(pixel_size=16, shard_rows=4, seed=1)  # 11 shards of 41 images


def worker(folder: Path, cache: Path, teacher: str, share: str) -> subprocess.Popen[str]:
    """``phistill extract --worker`` in a process of its own."""
    command = [sys.executable, "-m", "phistill", "extract", str(folder), "--cache", str(cache)]
    command += ["--teacher", teacher, "--worker", share, "--workers", "1"]
    command += ["--pixel-size", "16", "--shard-rows", "4", "--seed", "1"]
    modules = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Attempt(threading.Thread):
    """A worker in a thread: its locks are as those of a process."""

    def __init__(self, folder: Path, cache: Path | str, teacher: str, worker: WorkerShards) -> None:
        super().__init__()
        self._call = (folder, cache, [teacher])
        self._worker = worker
        self.num_shards = 0
        self.error: PhistillError | None = None
        self.start()

    def run(self) -> None:
        options = ExtractOptions(worker=self._worker, num_workers=1)
        try:
            self.num_shards = extract(*self._call, settings=SETTINGS, options=options).num_shards
        except PhistillError as error:
            self.error = error


def test_a_worker_of_three_that_is_killed_and_started_again_changes_nothing(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    teacher = f"t={tiny}?pause=0.2"
    whole = extract(folder, tmp_path / "whole", [teacher], settings=SETTINGS).cache
    target = tmp_path / "shared"
    first, killed, third = (worker(folder, target, teacher, f"{r}/3") for r in range(3))
    while killed.poll() is None and not (target / "commits/t/000001.json").exists():
        time.sleep(0.005)
    assert killed.pid in [holder.pid for holder in lock.holders(target)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = WorkerShards(1, 3).of(missing_shards(store.open(target)))
    assert left, "the worker was finished before it could be killed"
    for other in (first, third):
        _, said = other.communicate()
        assert other.returncode == 0, said
    assert missing_shards(store.open(target)) == left
    again = worker(folder, target, teacher, "1/3")
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert store.open(target).digest() == whole.digest()


def test_two_workers_at_once_make_one_cache(folder: Path, tiny: str, tmp_path: Path) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    both = [Attempt(folder, tmp_path / "c", f"t={tiny}", WorkerShards(r, 2)) for r in (0, 1)]
    for attempt in both:
        attempt.join()
        assert attempt.error is None
    assert [attempt.num_shards for attempt in both] == [12, 10]  # of the pixels and of t
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_a_worker_whose_shards_overlap_with_anothers_is_refused_and_nothing_is_lost(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    others = ExtractOptions(worker=WorkerShards(0, 2), time_limit_s=1e-9)
    cache = extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=others).cache
    holder = rf"shard 4 is being written by process {os.getpid()} on"
    with (
        cache.writing(WorkerShards(0, 2).of(missing_shards(cache))),
        pytest.raises(LockHeld, match=holder),
    ):
        extract(folder, tmp_path / "c", options=ExtractOptions(worker=WorkerShards(1, 3)))
    for share in (WorkerShards(1, 3), WorkerShards(0, 2), WorkerShards(1, 2)):
        extract(folder, tmp_path / "c", options=ExtractOptions(worker=share))
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_a_worker_waits_until_another_has_prepared_the_cache(
    folder: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "phistill")
    with lock.writing(tmp_path / "c"):
        waiting = threading.Thread(
            target=extract,
            args=(folder, tmp_path / "c", [f"t={tiny}"]),
            kwargs={
                "settings": SETTINGS,
                "options": ExtractOptions(worker=WorkerShards(0, 2)),
            },
        )
        waiting.start()
        while waiting.is_alive() and not caplog.messages:
            time.sleep(0.005)
    waiting.join()
    assert f"waiting for process {os.getpid()} on " in caplog.messages[0]
    assert missing_shards(store.open(tmp_path / "c")) == [1, 3, 5, 7, 9]


def test_the_time_limit_ends_the_wait_for_another_worker(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    arguments = [str(folder), "--cache", str(tmp_path / "c"), "--teacher", f"t={tiny}"]
    arguments += ["--worker", "0/2", "--time-limit", "1s"]
    with lock.writing(tmp_path / "c"):
        result = CliRunner().invoke(main, ["extract", *arguments])
    assert result.exit_code == 143
    assert f"while process {os.getpid()} on " in result.stderr
    assert "run the same command again to go on" in result.stderr


def test_what_a_worker_killed_while_preparing_left_is_in_nobodys_way(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    for left in (".lock", "zarr.json.partial", "index/0000.parquet", "teachers/zarr.json"):
        (tmp_path / "c" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / left).write_bytes(b"half")
    for index in (1, 0):
        options = ExtractOptions(worker=WorkerShards(index, 2))
        extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_workers_share_appended_images_and_added_teachers(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    first = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    for number in range(10):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"new-{number}.png")
    added = [f"u={tiny}?scale=2"]
    extract(folder, tmp_path / "whole", options=ExtractOptions(append=True))
    extract(folder, tmp_path / "whole", added)
    for index in (1, 0):
        share = ExtractOptions(append=True, worker=WorkerShards(index, 2))
        extract(folder, tmp_path / "c", options=share)
    for index in (0, 1):
        extract(
            folder, tmp_path / "c", added, options=ExtractOptions(worker=WorkerShards(index, 2))
        )
    assert store.open(tmp_path / "c").digest() == store.open(first.path).digest()


def test_the_batches_of_a_teacher_are_those_of_whoever_came_first(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    for index, rows in ((0, 3), (1, 7)):
        options = ExtractOptions(worker=WorkerShards(index, 2), rows_per_forward=rows)
        extract(folder, tmp_path / "c", [f"t={tiny}"], settings=SETTINGS, options=options)
    whole = extract(
        folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS,
        options=ExtractOptions(rows_per_forward=3),
    ).cache  # fmt: skip
    assert store.open(tmp_path / "c").digest() == whole.digest()


def test_the_command_takes_its_share_from_torchrun_and_says_so(
    folder: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    arguments = ["extract", folder, "--cache", tmp_path / "c", "--teacher", f"t={tiny}"]
    found = CliRunner().invoke(main, [*map(str, arguments), "--shard-rows", "4"])
    assert found.exit_code == 0
    assert "process 1 of 2 of torchrun: this is worker 1/2." in found.stderr
    assert re.search(r"worker 1/2: [\d.]+ MB written in ", found.stdout)
    assert "6 shards left of worker 0/2 (0, 2, 4, 6, 8, ...): nobody is extracting" in found.stdout
    assert f"`phistill extract {folder} --cache {tmp_path / 'c'} --worker 0/2`" in found.stdout
    assert "fit-stats" not in found.stdout
    monkeypatch.setenv("RANK", "0")
    found = CliRunner().invoke(main, [*map(str, arguments), "--worker", "0/1"])
    assert "this is worker 0/2." in found.stderr
    assert "Next: phistill fit-stats" in found.stdout


def test_machines_that_share_nothing_merge_their_shares(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    for index, name in enumerate(("here", "there")):
        share = ExtractOptions(worker=WorkerShards(index, 2))
        extract(folder, tmp_path / name, [f"t={tiny}"], settings=SETTINGS, options=share)
    found = CliRunner().invoke(main, ["merge", str(tmp_path / "here"), str(tmp_path / "there")])
    assert found.exit_code == 0, found.output
    assert store.open(tmp_path / "here").digest() == whole.digest()


def test_workers_share_a_cache_on_an_object_store(
    folder: Path, tiny: str, tmp_path: Path, bucket_url: str
) -> None:
    whole = extract(folder, tmp_path / "whole", [f"t={tiny}"], settings=SETTINGS).cache
    both = [Attempt(folder, bucket_url, f"t={tiny}", WorkerShards(r, 2)) for r in (0, 1)]
    for attempt in both:
        attempt.join()
        assert attempt.error is None
    assert [attempt.num_shards for attempt in both] == [12, 10]
    assert store.open(bucket_url).digest() == whole.digest()


def test_ranges_are_packed_while_the_run_goes_on(
    folder: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the last of several workers: the cache is the same."""
    monkeypatch.setattr("phistill.cache.format.info.MAX_PACK_SHARDS", 2)
    packs_at: list[int] = []

    def look(progress: ExtractProgress) -> None:
        packs_at.append(len(list((tmp_path / "one").glob("packs/commits/t/*.safetensors"))))

    one = extract(folder, tmp_path / "one", [f"t={tiny}"], settings=SETTINGS, on_progress=look)
    assert max(packs_at) > 0
    for rank in (0, 1):
        options = ExtractOptions(worker=WorkerShards(rank, 2))
        extract(folder, tmp_path / "two", [f"t={tiny}"], settings=SETTINGS, options=options)
        single = list((tmp_path / "two/commits").rglob("*.json"))
        assert (single == []) == (rank == 1)
    for path in ("one", "two"):
        assert not list((tmp_path / path / "facts").iterdir())
    assert store.open(tmp_path / "two").digest() == one.cache.digest()
