"""What fit-stats costs when most of it is there already."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from features import (
    SHARD_ROWS,
    add_teacher,
    commit_missing,
    make_cache,
    num_rows_of,
    shard_features,
)
from measuring import seconds
from synthetic import index_of, warm

from phistill.cache import Cache
from phistill.cache.upkeep.append import add_segment
from phistill.stats import fit_stats


def grow(options: argparse.Namespace) -> list[str]:
    """A first run, a second, one after 10 % more images, one after another teacher."""
    num_rows = num_rows_of(options.gib)
    extra = num_rows // 10 // SHARD_ROWS * SHARD_ROWS
    with tempfile.TemporaryDirectory() as folder:
        cache, features = make_cache(Path(folder) / "bench.cache", num_rows), shard_features()
        warm(cache)
        whole = _both_seconds(cache)
        again = _both_seconds(cache)
        add_segment(cache, index_of(cache.info.next_row, extra))
        commit_missing(cache, "t0", features)
        warm(cache)
        grown = _both_seconds(cache)
        add_teacher(cache, "t1", features)
        warm(cache)
        teacher = _both_seconds(cache)
    runs = (
        ("first", num_rows, whole),
        ("again, nothing new", 0, again),
        (f"{extra / num_rows:.0%} more images", extra, grown),
        ("a second teacher", num_rows + extra, teacher),
    )
    return [
        f"{num_rows:,} rows of one teacher, then {extra:,} more, then a second teacher of all.",
        "",
        "| run | new rows | share of the first | CPU seconds | share | seconds | share |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {rows:,} | {rows / num_rows:.3f} | {cpu:.2f} | {cpu / whole[0]:.3f} "
            f"| {wall:.2f} | {wall / whole[1]:.3f} |"
            for name, rows, (cpu, wall) in runs
        ),
    ]


def _both_seconds(cache: Cache) -> tuple[float, float]:
    """CPU seconds of this process, and wall seconds, of one fit-stats."""
    begin = time.process_time()
    wall = seconds(lambda: fit_stats(cache))
    return time.process_time() - begin, wall
