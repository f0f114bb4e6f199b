"""G8: no two writers have a shard at once, and a killed one leaves nothing locked."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.cache import open as open_cache
from phistill.cache.format import names
from phistill.cache.storage import lock
from phistill.errors import LockHeld, PhistillError
from tests.conftest import empty_cache

NUM_ROWS, SHARD_ROWS, WIDTH = 64, 4, 8
TEACHER = TeacherInfo(name="t", grid=(1, 1), widths={"patches": WIDTH})

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
import phistill.cache as store
from phistill.cache import ImageFacts
from phistill.errors import LockHeld

for line in sys.stdin:  # PATH SHARDS MODE
    path, shards, mode = line.split()
    cache, begun = store.open(path), time.monotonic()
    wanted = [int(shard) for shard in shards.split(",")]
    try:
        with cache.writing(wanted):
            print("held", flush=True)
            if mode == "hold":
                time.sleep(600)
            for shard in sorted(set(wanted) & set(cache.missing_shards("t"))):
                start, stop = cache.info.shard_range(shard)
                values = np.repeat(np.arange(start, stop, dtype=np.float16)[:, None, None], 8, 2)
                unknown = {name: (None,) * (stop - start) for name in ("sha256", "size", "box")}
                cache.commit_shard(
                    "t", shard, {"patches": values}, images=ImageFacts.of(**unknown),
                    reasons={}, environment={},
                )
            if mode == "until-told":
                sys.stdin.readline()
        print("done", flush=True)
    except LockHeld as error:
        print(f"{time.monotonic() - begun:.3f} {error}", flush=True)
"""


class Writer:
    """Another process that writes when told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def write(self, path: Path, shards: Sequence[int], mode: str = "write") -> None:
        self.tell(f"{path} {','.join(map(str, shards))} {mode}")

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def writers() -> Iterator[tuple[Writer, Writer]]:
    both = Writer(), Writer()
    yield both
    for writer in both:
        writer.process.kill()
        writer.process.communicate()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Cache]:
    """Makes empty caches of one teacher."""

    def new() -> Cache:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        return empty_cache(path, [TEACHER], num_rows=NUM_ROWS, shard_rows=SHARD_ROWS)

    return new


@pytest.mark.guarantee(
    "G8", "20 trials of two writers: one proceeds, one is refused within 2 s, 0 rows lost"
)
def test_of_two_writers_on_one_range_one_proceeds_and_no_row_is_lost(
    make: Callable[[], Cache], writers: tuple[Writer, Writer]
) -> None:
    expected = np.repeat(np.arange(NUM_ROWS, dtype=np.float16)[:, None, None], WIDTH, 2)
    for trial in range(20):
        cache = make()
        shards = cache.info.shards() if trial % 2 else cache.info.shards()[1::3]
        # Which of the two comes first is left to chance; who has it keeps it until told.
        for writer in writers:
            writer.write(cache.path, shards, "until-told")
        answers = [writer.answer() for writer in writers]
        assert "held" in answers
        winner = answers.index("held")
        loser = answers[1 - winner]
        if loser == "held":
            pytest.fail("both writers had the range at once")
        seconds, _, said = loser.partition(" ")
        assert float(seconds) < 2.0
        pid, host = writers[winner].process.pid, re.escape(socket.gethostname())
        assert re.search(rf"shard \d+ is being written by process {pid} on {host}\.", said)
        writers[winner].tell("")
        assert writers[winner].answer() == "done"
        writers[1 - winner].write(cache.path, cache.info.shards())
        assert [writers[1 - winner].answer() for _ in "ab"] == ["held", "done"]
        np.testing.assert_array_equal(
            cache.reader("t", "patches").read(np.arange(NUM_ROWS)), expected
        )


def test_writers_of_disjoint_shards_work_at_once_and_keep_out_whoever_wants_all(
    make: Callable[[], Cache], writers: tuple[Writer, Writer]
) -> None:
    cache, (even, odd) = make(), writers
    even.write(cache.path, cache.info.shards()[::2], "until-told")
    assert even.answer() == "held"
    odd.write(cache.path, cache.info.shards()[1::2], "until-told")
    assert odd.answer() == "held"
    pids = rf"process {even.process.pid} on \S+ and process {odd.process.pid} on \S+"
    with pytest.raises(LockHeld, match=rf"is being written by {pids}\."), cache.writing():
        pass
    with (
        pytest.raises(LockHeld, match=f"shard 3 .* process {odd.process.pid} "),
        cache.writing([3]),
    ):
        pass
    even.tell("")
    assert even.answer() == "done"
    with cache.writing([0, 2, 4]):
        pass
    odd.tell("")
    assert odd.answer() == "done"
    with cache.writing():
        pass
    assert not cache.missing_shards("t")


@pytest.mark.guarantee("G8", "free as soon as a killed writer is gone")
def test_a_killed_writer_frees_its_shards_at_once(
    make: Callable[[], Cache], writers: tuple[Writer, Writer]
) -> None:
    cache, (killed, other) = make(), writers
    killed.write(cache.path, [0, 5, 6], "hold")
    assert killed.answer() == "held"
    other.write(cache.path, [6, 7])
    assert f"shard 6 is being written by process {killed.process.pid} " in other.answer()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    other.write(cache.path, [0, 5, 6])
    assert other.answer() == "held"


def test_holders_are_the_living_with_what_they_may_write(
    make: Callable[[], Cache], writers: tuple[Writer, Writer]
) -> None:
    cache, (first, second) = make(), writers
    assert lock.holders(cache.path) == ()
    first.write(cache.path, [1, 5, 13], "hold")
    second.write(cache.path, [2], "hold")
    assert [first.answer(), second.answer()] == ["held", "held"]
    with cache.writing([0]):
        found = {holder.pid: holder.shards for holder in lock.holders(cache.path)}
    assert found == {
        first.process.pid: range(1, 14, 4),
        second.process.pid: range(2, 3),
        os.getpid(): range(1),
    }
    first.process.kill()
    first.process.wait()
    assert [holder.pid for holder in lock.holders(cache.path)] == [second.process.pid]


def test_two_threads_are_two_writers(make: Callable[[], Cache]) -> None:
    cache, refused = make(), []

    def attempt() -> None:
        try:
            with open_cache(cache.path).writing([4]):
                pass
        except LockHeld as error:
            refused.append(str(error))

    with cache.writing([3, 4]):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"shard 4 is being written by process {os.getpid()} on" in refused[0]


def test_a_lock_that_was_let_go_leaves_no_name(make: Callable[[], Cache]) -> None:
    cache = make()
    with cache.writing([2]):
        assert f'"pid": {os.getpid()}' in (cache.path / names.LOCK).read_text()
    assert not (cache.path / names.LOCK).read_text().strip()


def test_many_writers_have_a_line_each(make: Callable[[], Cache]) -> None:
    cache = make()
    held = [cache.writing([shard]) for shard in range(16)]
    for writer in held:
        writer.__enter__()
    assert [holder.shards for holder in lock.holders(cache.path)] == [
        range(shard, shard + 1) for shard in range(16)
    ]
    for writer in held:
        writer.__exit__(None, None, None)
    assert lock.holders(cache.path) == ()


def test_where_bytes_cannot_be_locked_one_writer_has_the_whole_file(
    make: Callable[[], Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_BYTE_LOCKS", False)  # as on macOS
    cache = make()
    for shards in ([0, 2], None):
        with cache.writing(shards):
            (holder,) = lock.holders(cache.path)
            assert holder.pid == os.getpid()
            for wanted in ([1, 3], None):
                with (
                    pytest.raises(LockHeld, match=f"is being written by process {os.getpid()} "),
                    cache.writing(wanted),
                ):
                    pass
        assert lock.holders(cache.path) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that not even root may write")
def test_a_place_that_cannot_be_made_is_named() -> None:
    with (
        pytest.raises(PhistillError, match=r"/sys/c cannot be made or written .* another place"),
        lock.writing(Path("/sys/c")),
    ):
        pass


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zarr.json").write_bytes(b"{}")

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)  # nothing keeps root from writing to a folder
    with (
        pytest.raises(PhistillError, match=rf"cannot be written .* `phistill stage {tmp_path} "),
        lock.writing(tmp_path),
    ):
        pass
