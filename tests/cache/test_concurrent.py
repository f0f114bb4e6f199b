"""Two writers never share a cache; a reader beside a writer sees whole shards only."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache import Cache, ImageFacts, TeacherInfo
from phistill.cache.storage import lock
from phistill.errors import LockHeld, MissingRow
from tests.conftest import FULL, empty_cache

CacheFactory = Callable[..., Cache]
READS = 10_000 if FULL else 2_000
HOLD = """
import sys, time
from pathlib import Path
from phistill.cache.storage import lock
with lock.writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a cache."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_at_once_and_a_killed_one_frees_the_lock(
    make_cache: CacheFactory,
) -> None:
    cache = make_cache()
    with holder(cache.path) as process:
        begun = time.monotonic()
        with pytest.raises(LockHeld, match=rf"process {process.pid} on \S+"), cache.writing():
            pass
        assert time.monotonic() - begun < 2.0  # G8: refused within two seconds
        process.kill()
        process.wait()
        with cache.writing():
            pass


def test_the_lock_says_who_holds_it_to_a_person(tmp_path: Path) -> None:
    with lock.writing(tmp_path / "c"):
        content = (tmp_path / "c" / ".lock").read_text()
    assert re.search(r'"pid": \d+, "host": "', content)


def test_a_reader_beside_a_writer_sees_whole_committed_shards_only(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """G10: each read while shards are being committed is right, or says MissingRow."""
    rows, shard_rows, width = 4096, 8, 16
    images = ImageFacts.of(sha256=(None,) * 8, size=(None,) * 8, box=(None,) * 8)
    teacher = TeacherInfo(name="t", grid=(1, 1), widths={"patches": width})
    cache = empty_cache(tmp_path / "c", [teacher], num_rows=rows, shard_rows=shard_rows)
    expected = np.arange(rows, dtype=np.float16)
    done = threading.Event()

    def write() -> None:
        for shard in range(rows // shard_rows):
            start = shard * shard_rows
            values: Any = np.repeat(expected[start : start + shard_rows, None, None], width, axis=2)
            cache.commit_shard(
                "t", shard, {"patches": values}, images=images, reasons={},
                environment={},
            )  # fmt: skip
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reader = Cache(tmp_path / "c").reader("t", "patches")
    generator = np.random.default_rng(0)
    reads = missing = 0
    while not done.is_set() or reads < READS:
        wanted = generator.integers(0, rows, 4)
        try:
            found = reader.read(wanted)
        except MissingRow:
            missing += 1
            continue
        reads += 1
        np.testing.assert_array_equal(found[:, 0, 0], expected[wanted])
        assert (found == found[:, :, :1]).all()
    writer.join()
    assert missing > 0, "every row was there from the start: nothing was tested"
    record_property("G10", f"{reads:,} reads beside a writer: 0 torn, 0 fill values")
