"""G24: memory and descriptors stay flat over a run fifty times as long."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache

CacheFactory = Callable[..., Cache]


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.guarantee("G24", "RssAnon within 5 %, open files equal over 50 times as many batches")
@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_fifty_times_as_many_batches_take_no_more(
    make_cache: CacheFactory, compression: str
) -> None:
    reader = make_cache(num_rows=64, compression=compression).reader("a", "patches")
    generator = np.random.default_rng(0)
    batches = 3 if compression else 100

    def read(count: int) -> tuple[int, int]:
        for _ in range(count):
            reader.read(generator.integers(0, 64, 16))
        return anonymous_bytes(), len(os.listdir("/proc/self/fd"))

    read(batches)  # whatever is loaded or cached once is there now
    before, files = read(batches)
    after, files_after = read(50 * batches)
    assert after <= 1.05 * before
    assert files_after == files
