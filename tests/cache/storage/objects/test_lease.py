"""Writers of one cache on an object store: no shard has two, and a dead one is soon forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phistill.cache.storage.objects import client, lease
from phistill.cache.storage.objects.lease import spans_of
from phistill.cache.storage.open_files import open_files
from phistill.errors import LockHeld, StoreError
from tests.object_store import Fault, FaultProxy

HOLD = """
import sys, time
from phistill.cache.storage.open_files import open_files
with open_files(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(60)
"""
TRIALS = 20 if os.environ.get("PHISTILL_FULL") == "1" else 3


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "RETRIES", 1)


def test_a_second_process_is_refused_at_once_and_a_killed_one_is_soon_free(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # G8: refused within two seconds, free within ten of a SIGKILL.
    assert lease.BEAT_S + 2 * lease.POLL_S < 2.0
    assert lease.STALE_S + 2 * lease.POLL_S < 10.0
    command = [sys.executable, "-c", HOLD, bucket_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        files = open_files(bucket_url)
        held_by = rf"is being written by process {process.pid} on \S+\. Wait for it"
        with pytest.raises(LockHeld, match=held_by), files.writing():
            pass
        assert [holder.pid for holder in files.holders()] == [process.pid]
        process.kill()
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    with files.writing():
        assert [holder.pid for holder in files.holders()] == [os.getpid()]
    assert files.walk() == [], "a lease was left"


def test_writers_of_other_shards_do_not_disturb_each_other(bucket_url: str) -> None:
    one, two, all_of_it = (open_files(bucket_url) for _ in range(3))
    with one.writing([0, 2, 4]), two.writing([1, 3, 5]):
        assert len(one.holders()) == 2
        overlapping = open_files(bucket_url).writing([4, 6])
        with pytest.raises(LockHeld, match="shard 4 is being written by process"), overlapping:
            pass
        with pytest.raises(LockHeld, match="is being written by"), all_of_it.writing():
            pass
    with all_of_it.writing():
        pass


@pytest.mark.parametrize("trial", range(TRIALS))
def test_of_writers_that_come_at_once_at_most_one_gets_in(
    trial: int, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    inside, most, refused = [0], [0], [0]
    guard, start = threading.Lock(), threading.Barrier(3)

    def write() -> None:
        start.wait()
        try:
            with open_files(bucket_url).writing([7]):
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(1.0)  # longer than the others need to see that this one lives
                with guard:
                    inside[0] -= 1
        except LockHeld:
            with guard:
                refused[0] += 1

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert refused[0] <= 2


def test_a_writer_that_was_given_up_for_dead_writes_nothing_more(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "FRESH_S", 0.0)  # every write asks first
    paused, other = open_files(bucket_url), open_files(bucket_url)
    with paused.writing():
        paused.publish("a", [b"1"])
        (path,) = other.walk()[:1]
        assert path.startswith(".lease/")
        other.delete(path)
        with other.writing():
            taken = "was taken over by another writer"
            with pytest.raises(LockHeld, match=taken):
                paused.publish("a", [b"2"])
            with pytest.raises(LockHeld, match=taken):
                paused.create("b", b"2")
            with pytest.raises(LockHeld, match=taken):
                paused.delete("a")
            other.publish("a", [b"3"])
    assert other.read("a") == b"3"
    assert other.walk() == ["a"]


def test_beats_whose_answers_are_lost_do_not_lose_the_lease(
    bucket_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "FRESH_S", 0.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    files = open_files(bucket_url)
    proxy.faults = [Fault("lost", "PUT", ".lease", times=4), Fault("503", "PUT", ".lease", times=3)]
    with files.writing():
        for number in range(10):
            files.publish("a", [b"%d" % number])
            time.sleep(0.05)
        assert [fault.times for fault in proxy.faults] == [0, 0]
    assert files.read("a") == b"9"


def test_while_no_beat_arrives_nothing_is_written(
    bucket_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files(bucket_url)
    with files.writing():
        monkeypatch.setattr(lease, "FRESH_S", 0.0)
        proxy.faults = [Fault("503", "PUT", ".lease", times=10**6)]
        with pytest.raises(StoreError, match=r"\.lease/\w+\.json could not be written"):
            files.publish("a", [b"1"])
        assert not files.exists("a")
        proxy.faults = []
        files.publish("a", [b"1"])


def test_a_store_without_conditions_is_led_by_the_leases_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obstore.store import LocalStore

    def local(*_: Any, **__: Any) -> LocalStore:
        return LocalStore(tmp_path)  # it refuses If-Match as not implemented

    monkeypatch.setattr(lease, "open_store", local)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    with lease.held("s3://b/x") as first:
        time.sleep(0.3)
        first.require()
        with pytest.raises(LockHeld, match="is being written by"), lease.held("s3://b/x"):
            pass
    assert not list((tmp_path / ".lease").iterdir())


def test_what_is_no_lease_of_ours_is_left_alone(bucket_url: str) -> None:
    files = open_files(bucket_url)
    for name, data in (("x.json", b"{}"), ("y.json", b"no"), ("z.json", b'{"shards": 3}')):
        files.publish(f".lease/{name}", [data])
    with files.writing():
        pass
    assert len(files.walk()) == 3


@given(st.sets(st.integers(0, 60)))
def test_spans_name_each_shard_once(shards: set[int]) -> None:
    named = [shard for span in spans_of(sorted(shards)) for shard in range(*span)]
    assert sorted(named) == sorted(shards)
    assert len(named) == len(set(named))


def test_every_second_of_many_shards_is_one_span() -> None:
    assert spans_of(range(1, 100_000, 2)) == ((1, 100_000, 2),)
