"""Killed at any rename or fsync, or refused by the disk, a cache ends as an uninterrupted one.

``PHISTILL_FULL=1`` tries every place; otherwise an even sample of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.cache.upkeep.verify import verify
from tests.conftest import FULL

SCRIPT = Path(__file__).parents[1] / "writing_script.py"
SAMPLE = None if FULL else 5
RANDOM_KILLS = 200 if FULL else 25
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0, reason="needs strace and root"
)


def write(path: Path, *strace: str, mode: str = "packed") -> subprocess.CompletedProcess[str]:
    """Run the script, under strace when it is to be disturbed."""
    command = [sys.executable, str(SCRIPT), str(path), mode]
    if strace:
        command = ["strace", "-f", "-qq", "-o", str(path.with_suffix(".strace")), *strace, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """Digest of an uninterrupted run, and how often it makes each system call."""
    path = tmp_path_factory.mktemp("whole") / "c"
    result = write(path, "-e", "trace=rename,fsync,write")
    assert result.returncode == 0, result.stderr
    trace = path.with_suffix(".strace").read_text()
    counts = {call: len(re.findall(rf"\b{call}\(", trace)) for call in ("rename", "fsync")}
    assert counts["rename"] > 15
    assert counts["fsync"] > 2 * counts["rename"]
    return Cache(path).digest(), counts


def places(count: int) -> list[int]:
    """Which of ``count`` calls to disturb, from 1."""
    if SAMPLE is None or count <= SAMPLE:
        return list(range(1, count + 1))
    return [1 + round(number * (count - 1) / (SAMPLE - 1)) for number in range(SAMPLE)]


@needs_strace
@pytest.mark.root
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_killed_at_a_system_call_and_run_again_it_ends_the_same(
    call: str,
    whole: tuple[str, dict[str, int]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    digest, counts = whole
    tried = places(counts[call])
    for place in tried:
        path = tmp_path / f"{call}-{place}"
        killed = write(path, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={place}")
        assert killed.returncode != 0
        again = write(path)
        assert again.returncode == 0, f"{call} {place}: {again.stderr}"
        assert Cache(path).digest() == digest, f"{call} {place}"
        assert not list(path.rglob("*.partial"))
    record_property("G1", f"SIGKILL at {len(tried)} of {counts[call]} {call}s: same digest")


@needs_strace
@pytest.mark.root
@pytest.mark.parametrize("call", ["rename", "fsync", "unlink"])
def test_killed_while_a_shard_is_taken_out_of_its_packs_it_ends_the_same(
    call: str,
    whole: tuple[str, dict[str, int]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The shard is committed anew and packed again, so every step of a repair is among them."""
    assert write(tmp_path / "start").returncode == 0
    shutil.copytree(tmp_path / "start", tmp_path / "traced")
    traced = write(tmp_path / "traced", "-e", f"trace={call}", mode="again")
    assert traced.returncode == 0, traced.stderr
    count = len(re.findall(rf"\b{call}\(", (tmp_path / "traced.strace").read_text()))
    assert count > 5
    tried = places(count)
    for place in tried:
        path = shutil.copytree(tmp_path / "start", tmp_path / f"{call}-{place}")
        inject = f"inject={call}:signal=KILL:when={place}"
        killed = write(path, "-e", f"trace={call}", "-e", inject, mode="again")
        assert killed.returncode != 0
        assert verify(Cache(path)).damaged == ()
        again = write(path)
        assert again.returncode == 0, f"{call} {place}: {again.stderr}"
        assert Cache(path).digest() == whole[0], f"{call} {place}"
        assert not list(path.rglob("*.partial"))
        left = [p for folder in ("commits", "facts") for p in (path / folder).rglob("*.*")]
        assert left == [], "all of it is packed again"
    record_property("G1", f"SIGKILL at {len(tried)} of {count} {call}s of a repair: same digest")


class ForkServer:
    """Runs the writing script in forked children."""

    def __init__(self) -> None:
        script = SCRIPT.with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def write(
        self, path: Path, *, kill_after: float = -1, more_files: int = -1
    ) -> tuple[int, float]:
        """Exit status (negative: the signal) and seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path} {kill_after} {more_files}\n")
        self.process.stdin.flush()
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.process.kill()
    server.process.communicate()


def test_killed_at_any_time_and_run_again_it_ends_the_same(
    server: ForkServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert server.write(tmp_path / "whole")[0] == 0
    digest = Cache(tmp_path / "whole").digest()
    generator = np.random.default_rng(0)
    killed = trial = 0
    while killed < RANDOM_KILLS:
        assert trial < 10 * RANDOM_KILLS, "the kills come too late"
        if trial % 10 == 0:  # a run takes longer or shorter as the machine is busy
            seconds = server.write(tmp_path / f"timed-{trial}")[1]
        path = tmp_path / f"killed-{trial}"
        status, _ = server.write(path, kill_after=float(generator.uniform(0, seconds)))
        killed += status == -signal.SIGKILL
        assert server.write(path)[0] == 0, path.with_suffix(".error").read_text()
        assert Cache(path).digest() == digest
        assert not list(path.rglob("*.partial"))
        trial += 1
    record_property("G1", f"SIGKILL at {killed} random times: same digest, nothing left over")


def test_without_file_descriptors_the_error_names_a_path_and_a_rerun_mends_it(
    server: ForkServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert server.write(tmp_path / "whole")[0] == 0
    digest = Cache(tmp_path / "whole").digest()
    refused = 0
    for more_files in range(6):
        path = tmp_path / f"few-{more_files}"
        status, _ = server.write(path, more_files=more_files)
        said = path.with_suffix(".error").read_text()
        if status:
            refused += 1
            assert "Too many open files" in said
            assert str(path) in said
        assert server.write(path)[0] == 0
        assert Cache(path).digest() == digest
    assert 0 < refused < 6
    record_property("G5", f"EMFILE at {refused} limits: the error names the path, a rerun mends it")


@pytest.mark.guarantee("G2", "five kills in one run: same digest")
@needs_strace
@pytest.mark.root
def test_five_kills_in_one_run_end_the_same(
    whole: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    for place in (3, 5, 2, 7, 4):
        write(path, "-e", "trace=fsync", "-e", f"inject=fsync:signal=KILL:when={place}")
    assert write(path).returncode == 0
    assert Cache(path).digest() == whole[0]


@needs_strace
@pytest.mark.root
@pytest.mark.parametrize(("call", "errno"), [("fsync", "EIO"), ("rename", "ENOSPC")])
def test_an_error_of_the_disk_names_path_and_bytes_and_a_rerun_mends_it(
    call: str,
    errno: str,
    whole: tuple[str, dict[str, int]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    digest, counts = whole
    tried = places(counts[call])[1:]
    for place in tried:
        path = tmp_path / f"{call}-{place}"
        inject = f"inject={call}:error={errno}:when={place}"
        refused = write(path, "-e", f"trace={call}", "-e", inject)
        assert refused.returncode != 0
        assert re.search(
            rf"PublishError: {path}/\S* could not be (written \([\d,]+ bytes\)|removed): ",
            refused.stderr,
        )
        assert write(path).returncode == 0
        assert Cache(path).digest() == digest
    record_property("G5", f"{errno} at {len(tried)} {call}s: path and bytes named, rerun mends it")


@pytest.mark.guarantee("G5", "a full file system: path and bytes named, same digest after freeing")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
@pytest.mark.root
def test_a_full_disk_is_explained_and_the_run_goes_on_after_space_is_freed(
    whole: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(80_000))
        full = write(mount / "c")
        assert full.returncode != 0
        assert "No space left on device" in full.stderr
        assert "Free some space" in full.stderr
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(mount)], check=True)
        assert write(mount / "c").returncode == 0
        assert Cache(mount / "c").digest() == whole[0]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_limit_on_the_size_of_a_file_is_no_full_disk(tmp_path: Path) -> None:
    limited = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -f 1; exec "$@"',
            "-",
            sys.executable,
            str(SCRIPT),
            str(tmp_path / "c"),
            "packed",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode != 0
    assert "File too large" in limited.stderr
    assert "ulimit -f" in limited.stderr
    assert "Free some space" not in limited.stderr
